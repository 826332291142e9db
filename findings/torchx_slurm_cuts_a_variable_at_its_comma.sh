#!/usr/bin/env bash
# torchx 0.7.0 hands a role's variables to Slurm as `srun --export=ALL,NAME=VALUE,...` and leaves commas in the values as
# they are. Slurm parts that list at commas: of LAYERS=64,128 the task gets 64 (seen with srun 22.05.8).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torchx==0.7.0
cd "$folder"

venv/bin/python - <<'PYTHON' >seen 2>errors
import re

from torchx.schedulers.slurm_scheduler import create_scheduler
from torchx.specs import AppDef, Resource, Role

role = Role(
    name="train", image=".", entrypoint="python", args=["train.py"], env={"LAYERS": "64,128", "SEED": "7"},
    resource=Resource(cpu=1, gpu=0, memMB=1000),
)
script = str(create_scheduler("session").submit_dryrun(AppDef(name="job", roles=[role]), {"partition": "main"}))
print(*re.findall(r"--export=\S+", script))
PYTHON

cat seen
diff seen - <<'EXPECTED'
--export=ALL,LAYERS=64,128,SEED=7
EXPECTED
