"""A model as a program that runs without Batchyard, its normalisation in it: ONNX, or torch.export's own form."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.trained import Trained

INPUT, OUTPUT = "pictures", "scores"
KEY = "batchyard"  # below which the description stands in the file, as JSON
MOST_APART = 1e-4  # of the largest score
ONNX = ("onnx", "onnxscript", "onnxruntime")


class CannotExport(Exception):
    """The model does not become a program, or becomes another one; the message is for a person."""


def write(model: Trained, path: Path, form: str, description: dict[str, Any]) -> float:
    """Writes the program uint8 [batch, C, H, W] -> float32 scores to `path`, reads it back and runs it on pictures of noise.

    Returns how far its scores are from the model's own, at most. Raises CannotExport, and OSError.
    """
    program = nn.Sequential(model.normalise, model.model).eval()
    name = model.config.train.model.name
    given = (model.fit.channels, *model.fit.shape[1:])
    pictures = torch.randint(0, 256, (3, *given), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = program(pictures)
        try:
            batch = torch.export.Dim("batch", min=1)
            exported = torch.export.export(program, (pictures[:2],), dynamic_shapes=({0: batch},))
            run = FORMS[form](exported, path, json.dumps(description))
        except (OSError, CannotExport):
            raise
        except Exception as error:  # tracing and translating a model fail in many ways
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise CannotExport(f"{name} does not become a program of the format {form}: {reason}") from error
        apart = max(float((run(pictures[:n]) - own[:n]).abs().max()) for n in (1, 3))  # batches of other sizes than it was made by
    if not apart <= MOST_APART * float(own.abs().max()):
        raise CannotExport(f"the {form} program of {name} gives other scores than the model, {apart:.2g} apart: not written")
    return apart


def onnx(exported: Any, path: Path, description: str) -> Callable[[Tensor], Tensor]:
    """Writes ONNX, the description in its metadata. Returns the file's program, run by onnxruntime. Raises CannotExport."""
    if missing := [name for name in ONNX if importlib.util.find_spec(name) is None]:
        raise CannotExport(
            f"ONNX needs {', '.join(missing)}: install the extra 'onnx' for the run's Python, or take --format torch-export"
        )
    import onnxruntime

    made = torch.onnx.export(exported, dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False)
    assert made is not None
    made.model.metadata_props[KEY] = description
    made.save(path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda pictures: torch.from_numpy(session.run([OUTPUT], {INPUT: pictures.numpy()})[0])


def torch_export(exported: Any, path: Path, description: str) -> Callable[[Tensor], Tensor]:
    """Writes torch.export's archive, the description as an extra file in it. Returns the file's program."""
    torch.export.save(exported, path, extra_files={KEY: description})
    return torch.export.load(path).module()


FORMS = {"onnx": onnx, "torch-export": torch_export}
