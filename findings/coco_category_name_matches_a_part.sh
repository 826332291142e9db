#!/usr/bin/env bash
# pycocotools 2.0.11: COCO.getCatIds takes a name or a list of names. A list matches whole names; one string matches every
# category whose name is a part of it, so that "hot dog" brings "dog" along. An empty list of images means all images: the
# annotations of a selection that came out empty are those of the whole set.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pycocotools==2.0.11 numpy==2.4.6
cd "$folder"

venv/bin/python - <<'PYTHON' >seen
import contextlib
import io

from pycocotools.coco import COCO

coco = COCO()
coco.dataset = {
    "images": [{"id": 1}, {"id": 2}],
    "annotations": [
        {"id": n, "image_id": n, "category_id": 18, "area": 1, "iscrowd": 0, "bbox": [0, 0, 1, 1]} for n in (1, 2)
    ],
    "categories": [{"id": 18, "name": "dog"}, {"id": 58, "name": "hot dog"}],
}
with contextlib.redirect_stdout(io.StringIO()):
    coco.createIndex()
print("as a list:", coco.getCatIds(catNms=["hot dog"]))
print("as a string:", coco.getCatIds(catNms="hot dog"))
print("of no image:", coco.getAnnIds(imgIds=[]))
PYTHON

cat seen
diff seen - <<'EXPECTED'
as a list: [58]
as a string: [18, 58]
of no image: [1, 2]
EXPECTED
