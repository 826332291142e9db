#!/usr/bin/env bash
# webdataset 1.0.2 takes a file's key up to the first dot of its name and everything behind it as the field's name. Two
# images whose names differ after a dot (photo.v1.jpg, photo.v2.jpg) become one sample, and none of them has a field `jpg`;
# a file without a dot is left out. Nothing is printed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet webdataset==1.0.2 numpy==2.4.6
cd "$folder"

venv/bin/python - <<'PYTHON' >seen
import io
import tarfile

import webdataset

with tarfile.open("shard.tar", "w") as shard:
    for name in ("cat/photo.v1.jpg", "cat/photo.v2.jpg", "cat/other.jpg", "cat/LICENSE"):
        member = tarfile.TarInfo(name)
        member.size = len(name)
        shard.addfile(member, io.BytesIO(name.encode()))
for sample in webdataset.WebDataset("shard.tar", shardshuffle=False):
    print(sample["__key__"], [name for name in sample if not name.startswith("__")])
PYTHON

cat seen
diff seen - <<'EXPECTED'
cat/photo ['v1.jpg', 'v2.jpg']
cat/other ['jpg']
EXPECTED
