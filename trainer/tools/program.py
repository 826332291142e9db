"""A model as a program that runs without Batchyard, its normalisation in it: ONNX, or
torch.export's own form.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainer.tools.trained import Trained

KEY = "batchyard"  # below which the description stands in the file, as JSON
MOST_APART = 1e-4  # of the largest output
ONNX = ("onnx", "onnxscript", "onnxruntime")


class CannotExport(Exception):
    """The model does not become a program, or becomes another one; the message is for a person."""


class Program(NamedTuple):
    """What is to be written. module: in evaluation mode; inputs: three of noise, by which it is
    made and tried; input, output: what they are called in the file.
    """

    name: str
    module: nn.Module
    inputs: Tensor
    input: str
    output: str


def of_pictures(model: Trained) -> Program:
    """uint8 [batch, C, H, W] -> float32 scores [batch, classes] or [batch, classes, H, W]."""
    given = (3, model.fit.channels, *model.fit.shape[1:])
    pictures = torch.randint(
        0, 256, given, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    name = model.config.train.model.name
    return Program(
        name, nn.Sequential(model.normalise, model.model).eval(), pictures, "pictures", "scores"
    )


def of_rows(model: nn.Module, name: str, features: int) -> Program:
    """float32 [batch, features] -> float32 [batch, targets]. model: takes rows as pictures of one
    pixel.
    """
    rows = torch.randn(3, features, generator=torch.Generator().manual_seed(0))
    return Program(
        name, nn.Sequential(nn.Unflatten(1, (features, 1, 1)), model).eval(), rows, "rows", "values"
    )


def write(program: Program, path: Path, form: str, description: dict[str, Any]) -> float:
    """Writes the program to `path`, reads it back and runs it on its inputs.

    Returns how far its outputs are from the model's own, at most. Raises CannotExport, and OSError.
    """
    name, inputs = program.name, program.inputs
    with torch.no_grad():
        own = program.module(inputs)
        if not torch.isfinite(own).all():
            raise CannotExport(
                f"{name} gives {program.output} of noise that are not finite: no program can be"
                " compared with it"
            )
        try:
            batch = torch.export.Dim("batch", min=1)
            exported = torch.export.export(
                program.module, (inputs[:2],), dynamic_shapes=({0: batch},)
            )
            run = FORMS[form](program, exported, path, json.dumps(description))
        except (OSError, CannotExport):
            raise
        except Exception as error:  # tracing and translating a model fail in many ways
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CannotExport(
                f"{name} does not become a program of the format {form}: {reason}"
            ) from error
        # batches of other sizes than it was made by
        apart = max(float((run(inputs[:n]) - own[:n]).abs().max()) for n in (1, 3))
    if not apart <= MOST_APART * float(own.abs().max()):
        what = program.output
        raise CannotExport(
            f"the {form} program of {name} gives other {what} than the model, {apart:.2g} apart:"
            " not written"
        )
    return apart


def onnx(
    program: Program, exported: Any, path: Path, description: str
) -> Callable[[Tensor], Tensor]:
    """Writes ONNX, the description in its metadata.

    Returns the file's program, run by onnxruntime. Raises CannotExport.
    """
    if missing := [name for name in ONNX if importlib.util.find_spec(name) is None]:
        raise CannotExport(
            f"ONNX needs {', '.join(missing)}: install the extra 'onnx' for the run's Python, or"
            " take --format torch-export"
        )
    import onnxruntime

    names = {"input_names": [program.input], "output_names": [program.output]}
    made = torch.onnx.export(exported, dynamo=True, verbose=False, **names)
    assert made is not None
    made.model.metadata_props[KEY] = description
    made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: torch.from_numpy(
        session.run([program.output], {program.input: inputs.numpy()})[0]
    )


def torch_export(
    program: Program, exported: Any, path: Path, description: str
) -> Callable[[Tensor], Tensor]:
    """Writes torch.export's archive, the description as an extra file in it.

    Returns the file's program.
    """
    torch.export.save(exported, path, extra_files={KEY: description})
    return torch.export.load(path).module()


FORMS = {"onnx": onnx, "torch-export": torch_export}
