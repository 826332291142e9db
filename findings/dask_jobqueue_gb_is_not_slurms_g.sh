#!/usr/bin/env bash
# dask-jobqueue 0.9.0: memory="16 GB" becomes `#SBATCH --mem=15G`, for GB is 10^9 bytes to dask and G is 2^30 to Slurm, and
# "1 GB" becomes 954M. Only "16 GiB" asks Slurm for what its own documentation calls 16 GB.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet dask-jobqueue==0.9.0
cd "$folder"

venv/bin/python - <<'PYTHON' >seen 2>errors
from dask_jobqueue.slurm import SLURMJob

for memory in ("1 GB", "16 GB", "16 GiB"):
    job = SLURMJob("tcp://127.0.0.1:1", name="worker", cores=1, memory=memory)
    print(memory, [line for line in job.job_script().splitlines() if line.startswith("#SBATCH --mem")])
PYTHON

cat seen
diff seen - <<'EXPECTED'
1 GB ['#SBATCH --mem=954M']
16 GB ['#SBATCH --mem=15G']
16 GiB ['#SBATCH --mem=16G']
EXPECTED
