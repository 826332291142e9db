"""`python -m trainer.tools.export RUN_DIR/config.json`: a checkpoint for other programs; one JSON
object on stdout.

As safetensors: the weights, for programs that should unpickle nothing. As ONNX or by torch.export:
the model itself, with its normalisation, for programs that know nothing of Batchyard. In the file
stands what its classes are and what becomes of a picture.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from trainer.checkpoints.files import (
    Checkpoint,
    NewerCheckpoint,
    NoCheckpoint,
    find,
    weights_sha256,
)
from trainer.config.data import ImageData
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import EXIT_WRONG
from trainer.config.run import RunConfig
from trainer.tools import program, trained
from trainer.tools.program import CannotExport
from trainer.tools.trained import TakesNoPictures

ENDINGS = {"safetensors": "safetensors", "onnx": "onnx", "torch-export": "pt2"}


def facts_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """Which run and step the weights came from, and their sha256."""
    return {
        "run_id": checkpoint.path.parent.parent.name,
        "checkpoint": checkpoint.path.name,
        "global_step": checkpoint.manifest["global_step"],
        "weights_sha256": weights_sha256(checkpoint.weights),
    }


def export_safetensors(
    checkpoint: Checkpoint, path: Path, description: dict[str, Any]
) -> dict[str, Any]:
    """Writes the weights to `path`; names, shapes and dtypes are the state dict's.

    Returns what was written.

    The file's metadata (strings) say which run and step it came from, the weights_sha256, and the
    description, as JSON. Raises OSError.
    """
    # it takes no shared memory
    weights = {name: tensor.contiguous().clone() for name, tensor in checkpoint.weights.items()}
    facts = {name: str(value) for name, value in facts_of(checkpoint).items()}
    save_file(weights, path, {"format": "pt", **facts, program.KEY: json.dumps(description)})
    order_metadata(path)
    return {"tensors": len(weights)}


def order_metadata(path: Path) -> None:
    """Rewrites the header of a safetensors file with its metadata sorted: safetensors 0.8 writes
    them in an order by chance, and the same weights would have another sha256 each time.

    The format: 8 bytes with the header's length, little-endian, the header as JSON, and behind it
    the tensors. Spaces may follow the JSON. Raises OSError.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length, (
            f"{path}: safetensors wrote a header of {length} bytes, ours has {len(text)}"
        )
        file.seek(8)
        file.write(text.ljust(length))


def export_program(
    run: RunDir, config: RunConfig, checkpoint: Checkpoint, path: Path, form: str
) -> dict[str, Any]:
    """Writes the model as a program to `path`.

    Returns what was written. Raises TakesNoPictures, CannotExport, OSError.
    """
    data = config.train.data
    if isinstance(data, ImageData):
        made = program.of_pictures(trained.load(run, config, checkpoint, "cpu"))
        given = "picture, uint8 [batch, C, H, W]; normalise is done inside"
        result = "float32 [batch, classes] (of masks [batch, classes, H, W]), before softmax"
    else:
        model = trained.model_of(config, trained.record_of(run), checkpoint)
        made = program.of_rows(model, config.train.model.name, data.pictures().channels)
        given, result = "row, float32 [batch, features]", "float32 [batch, targets]"
    inside = {
        "input": {"name": made.input, "is": given},
        "output": {"name": made.output, "is": result},
    }
    told = {**facts_of(checkpoint), **description_of(run, config), **inside}
    return {"largest_difference": program.write(made, path, form, told)}


def description_of(run: RunDir, config: RunConfig) -> dict[str, Any]:
    """What trained.described says of pictures; of a table its name and what a row is.

    Raises FileNotFoundError.
    """
    record, data = trained.record_of(run), config.train.data
    if isinstance(data, ImageData):
        return trained.described(data, record)
    row = {
        "features": data.pictures().channels,
        "dtype": "float32",
        "as": "the prepared table has them",
    }
    return {"task": data.task, "data": data.name, "row": row, "targets": record["classes"]}


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name to write to; what was written appears as `path` by one rename, once it is on the disk.

    The name is always the same, in a folder of its own: torch.export writes it into the file. Its
    ending is that of `path`, which tells a writer the format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary = folder / f"model{path.suffix}"
    folder.mkdir()
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        folder.rmdir()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--checkpoint", choices=["latest", "best"], default="latest")
    parser.add_argument("--format", choices=list(ENDINGS), default="safetensors")
    parser.add_argument(
        "--out",
        type=Path,
        help="the file to write; else RUN_DIR/<checkpoint>.<ending of the format>",
    )
    arguments = parser.parse_args()
    run = RunDir(arguments.config.absolute().parent)
    config = RunConfig.model_validate_json(run.config.read_text())
    out = arguments.out or run.exported(arguments.checkpoint, ENDINGS[arguments.format])
    try:
        found, complaints = find(run, arguments.checkpoint)
        for complaint in complaints:
            print(f"checkpoint passed over: {complaint}", file=sys.stderr)
        with appearing(out) as path:
            if arguments.format == "safetensors":
                written = export_safetensors(found, path, description_of(run, config))
            else:
                written = export_program(run, config, found, path, arguments.format)
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except (NoCheckpoint, NewerCheckpoint, TakesNoPictures, CannotExport) as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"writing {out}: {error}", file=sys.stderr)
        sys.exit(EXIT_WRONG)
    print(
        json.dumps(
            {
                "file": str(out),
                "bytes": out.stat().st_size,
                "sha256": sha256,
                **written,
                **facts_of(found),
            }
        )
    )


if __name__ == "__main__":
    main()
