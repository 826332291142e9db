#!/usr/bin/env bash
# A TFRecord stores a checksum of each record's length and of its bytes. The package tfrecord 1.14.6, which reads such files
# without TensorFlow, skips both: a record of which one bit changed on a disk is returned like any other.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tfrecord==1.14.6 numpy==2.4.6
cd "$folder"

venv/bin/python - <<'PYTHON' >seen
from pathlib import Path

from tfrecord import TFRecordWriter
from tfrecord.reader import tfrecord_loader

writer = TFRecordWriter("data.tfrecord")
writer.write({"image": (b"hello", "byte")})
writer.close()
content = bytearray(Path("data.tfrecord").read_bytes())
content[content.index(b"hello")] ^= 1
Path("data.tfrecord").write_bytes(content)
print(list(tfrecord_loader("data.tfrecord", None, {"image": "byte"})))
PYTHON

cat seen
diff seen - <<'EXPECTED'
[{'image': b'iello'}]
EXPECTED
