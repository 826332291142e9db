"""`python -m trainer.export RUN_DIR/config.json`: a checkpoint's weights as safetensors, for programs that should unpickle nothing.

One JSON object on stdout.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from trainer.checkpoint import Checkpoint, NewerCheckpoint, NoCheckpoint, find, weights_sha256
from trainer.config.layout import RunDir
from trainer.config.outcome import EXIT_WRONG


def export_safetensors(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Writes the weights to `path` by one rename; names, shapes and dtypes are the state dict's. Returns what was written.

    The file's metadata (strings) say which run and step it came from, and the weights_sha256. Raises OSError.
    """
    weights = {name: tensor.contiguous().clone() for name, tensor in checkpoint.weights.items()}  # it takes no shared memory
    facts = {
        "run_id": checkpoint.path.parent.parent.name,
        "checkpoint": checkpoint.path.name,
        "global_step": checkpoint.manifest["global_step"],
        "weights_sha256": weights_sha256(weights),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file(weights, temporary, {"format": "pt", **{name: str(value) for name, value in facts.items()}})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"file": str(path), "bytes": path.stat().st_size, "sha256": sha256, "tensors": len(weights), **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--checkpoint", choices=["latest", "best"], default="latest")
    parser.add_argument("--out", type=Path, help="the file to write; else RUN_DIR/<checkpoint>.safetensors")
    arguments = parser.parse_args()
    run = RunDir(arguments.config.absolute().parent)
    out = arguments.out or run.exported(arguments.checkpoint)
    try:
        found, complaints = find(run, arguments.checkpoint)
        for complaint in complaints:
            print(f"checkpoint passed over: {complaint}", file=sys.stderr)
        print(json.dumps(export_safetensors(found, out)))
    except (NoCheckpoint, NewerCheckpoint) as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"writing {out}: {error}", file=sys.stderr)
        sys.exit(EXIT_WRONG)


if __name__ == "__main__":
    main()
