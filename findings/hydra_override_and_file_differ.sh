#!/usr/bin/env bash
# The same text is another value in a YAML file that OmegaConf 2.3.1 reads and in an override of Hydra 1.3.8: the file is
# YAML 1.1 (010 is octal, 12:30:45 is a number to base 60, on is true), the override has a grammar of its own, in which nan
# and inf are numbers, which in the file are strings. A sweep over `seed=010` does not repeat the run of `seed: 010`.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet hydra-core==1.3.8 omegaconf==2.3.1
cd "$folder"

venv/bin/python - <<'PYTHON' >seen
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

parser = OverridesParser.create()
for text in ("010", "0x10", "12:30:45", "on", "nan", "inf", ".inf", "1e-3"):
    override = parser.parse_override(f"value={text}").value()
    print(f"{text:9} override {override!r:11} file {OmegaConf.create(f'value: {text}').value!r}")
PYTHON

cat seen
diff seen - <<'EXPECTED'
010       override '010'       file 8
0x10      override '0x10'      file 16
12:30:45  override '12:30:45'  file 45045
on        override 'on'        file True
nan       override nan         file 'nan'
inf       override inf         file 'inf'
.inf      override '.inf'      file inf
1e-3      override 0.001       file 0.001
EXPECTED
