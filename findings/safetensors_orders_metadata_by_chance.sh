#!/usr/bin/env bash
# safetensors 0.8.0 writes the metadata of a file in another order in each process: the same tensors with the same metadata
# are files of the same size with other bytes, so that their sha256 tells nothing, and caches and mirrors keep copies.
# A tensor may be called __metadata__, as the header's own key is: it is written without a word, and the file cannot be read.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.4.6
cd "$folder"

cat >save.py <<'PYTHON'
import sys

import numpy
from safetensors.numpy import save_file

metadata = {f"key {number}": "value" for number in range(8)}
save_file({"weight": numpy.zeros(2, numpy.float32)}, sys.argv[1], metadata)
PYTHON
for number in 1 2 3 4 5 6; do venv/bin/python save.py "$number.safetensors"; done

{
    echo "sizes: $(stat --format %s ./*.safetensors | sort -u | wc -l)"
    [ "$(sha256sum ./*.safetensors | cut -d' ' -f1 | sort -u | wc -l)" -gt 1 ] && echo "sha256: several"
    venv/bin/python - <<'PYTHON'
import numpy
from safetensors.numpy import load_file, save_file

save_file({"__metadata__": numpy.zeros(2, numpy.float32)}, "named.safetensors")
try:
    load_file("named.safetensors")
    print("__metadata__: is read")
except Exception as error:
    print("__metadata__:", type(error).__name__)
PYTHON
} >seen

cat seen
diff seen - <<'EXPECTED'
sizes: 1
sha256: several
__metadata__: SafetensorError
EXPECTED
