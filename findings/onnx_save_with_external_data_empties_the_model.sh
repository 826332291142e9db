#!/usr/bin/env bash
# onnx 1.23.2: save(model, path, save_as_external_data=True) moves the weights out of the model in memory, too. Saved once
# more under another name, as one file, it has no weights: 142 bytes that point at the first file's data. And the first save
# cannot be repeated: a data file of that name is refused, while the .onnx file beside it would be replaced.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnx==1.23.2 numpy==2.4.6
cd "$folder"

venv/bin/python - <<'PYTHON' >seen
import copy
from pathlib import Path

import numpy
import onnx
from onnx import helper, numpy_helper

weights = numpy_helper.from_array(numpy.ones((1024, 1024), numpy.float32), "w")
values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 1024]) for name in "xy"]
graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", values[:1], values[1:], [weights])
model = helper.make_model(graph)
again = copy.deepcopy(model)

print("in memory:", len(model.graph.initializer[0].raw_data), "bytes of weights")
onnx.save(model, "a.onnx", save_as_external_data=True, location="a.data")
print("after the save:", len(model.graph.initializer[0].raw_data), "bytes of weights")
onnx.save(model, "b.onnx")
print("saved whole:", Path("b.onnx").stat().st_size, "bytes")
try:
    onnx.save(again, "a.onnx", save_as_external_data=True, location="a.data")
except FileExistsError as error:
    print("saved again:", error)
PYTHON

cat seen
diff seen - <<'EXPECTED'
in memory: 4194304 bytes of weights
after the save: 0 bytes of weights
saved whole: 142 bytes
saved again: External data file exists in a.data.
EXPECTED
