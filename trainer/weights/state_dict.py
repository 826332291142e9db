"""A file of weights becomes names and tensors, or one sentence that says what it is instead.

Nothing in a file is run.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from trainer.prepared.errors import DataError

FIRST_BYTES = 512
# What begins like this is no file of weights, and what to do about it.
OTHER_FILES = (
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the file itself: `git lfs pull` fetches that",
    ),
    (b"\x1f\x8b", "packed by gzip: unpack it first"),
    (
        b"\x89HDF",
        (
            "an HDF5 file, as Keras writes it; expected a state dict that torch.save or safetensors"
            " wrote"
        ),
    ),
    (b"GGUF", "a GGUF file; expected a state dict that torch.save or safetensors wrote"),
)
WEB_PAGE = re.compile(rb"\s*<(!doctype|html|head|\?xml)", re.IGNORECASE)
# Under which keys of a checkpoint its model's weights are, the most telling one first.
KEYS = ("state_dict", "model_state_dict", "model", "weights", "params", "net", "network", "module")
DEPTH = 3  # of mappings in mappings that are looked into
MOST_SHOWN = 5


def read(path: Path) -> dict[str, Tensor]:
    """The names and tensors of a file that torch.save or safetensors wrote, whatever its name ends
    in: a state dict, or a checkpoint with one in it. What wrappers put before a name (`module.`,
    `_orig_mod.`) is left out.

    Raises DataError, one sentence.
    """
    try:
        content = _content(path)
    except OSError as error:
        raise DataError(
            f"train.weights: {path} cannot be read: {error.strerror or error}"
        ) from None
    except NoWeights as error:
        raise DataError(f"train.weights: {path} {error}") from None
    return _bare(content)


class NoWeights(Exception):
    """The file has no weights; the message goes on after the file's name."""


def _content(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        first, size = file.read(FIRST_BYTES), path.stat().st_size
    if not first:
        raise NoWeights("is empty")
    for beginning, what in OTHER_FILES:
        if first.startswith(beginning):
            raise NoWeights(f"is {what}")
    if WEB_PAGE.match(first):
        raise NoWeights(
            "is a web page: the download brought its server's answer instead of the file"
        )
    if first[8:9] == b"{":
        return _of_safetensors(path, first, size)
    if first.startswith((b"PK\x03\x04", b"\x80")):
        return _state_dict(_of_torch(path, in_archive=first.startswith(b"PK")))
    raise NoWeights(
        f"is neither a file of torch.save nor one of safetensors: it begins with {first[:16]!r}"
    )


def _of_safetensors(path: Path, first: bytes, size: int) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = int.from_bytes(first[:8], "little")
    if 8 + header > size:
        raise NoWeights(
            f"is incomplete: its header alone has {header:,} bytes, the file has {size:,}"
        )
    try:
        found = load_file(path)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = "it is incomplete, or was changed" if "fully covered" in str(error) else str(error)
        raise NoWeights(f"cannot be read by safetensors: {reason}") from None
    if not found:
        raise NoWeights("has no tensors")
    return found


def _of_torch(path: Path, *, in_archive: bool) -> Any:
    """What torch.save wrote, of tensors and plain values alone."""
    if in_archive:
        _refuse_other_archives(path)
    # by its name torch 2.15 would take a .safetensors for one, whatever is in it
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (
            OSError,
            RuntimeError,
            ValueError,
            EOFError,
            LookupError,
            TypeError,
            pickle.UnpicklingError,
        ) as error:
            raise NoWeights(_why_not(file, error)) from None


def _refuse_other_archives(path: Path) -> None:
    """torch.save writes a zip archive, its list of contents at the end; other programs write such
    archives too.
    """
    if not zipfile.is_zipfile(path):
        raise NoWeights(
            "is incomplete: it begins as torch.save writes a file, and its end is missing"
        )
    with zipfile.ZipFile(path) as archive:
        names = [name.rpartition("/")[2] for name in archive.namelist()]
    if "constants.pkl" in names:
        raise NoWeights(
            "is a TorchScript program: save its state dict instead,"
            " torch.save(program.state_dict(), FILE)"
        )
    if "data.pkl" not in names:
        raise NoWeights("is a zip archive that torch.save did not write")


def _why_not(file: BinaryIO, error: Exception) -> str:
    """Why torch does not load a file.

    Its own message advises to run what is in the file, and is not repeated.
    """
    if not isinstance(error, pickle.UnpicklingError):
        return "is incomplete or corrupt: torch.save's format is broken off in it"
    try:
        file.seek(0)
        others = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    # it reads the newer format alone, and what a corrupt pickle raises is not documented
    except Exception:
        others = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if not others:
        return "is corrupt, or torch.save did not write it"
    more = [f"{len(others) - MOST_SHOWN} more"] if len(others) > MOST_SHOWN else []
    return (
        f"has more in it than tensors ({', '.join([*others[:MOST_SHOWN], *more])}), and loading"
        " that would run code of the file: save the weights alone, torch.save(model.state_dict(),"
        " FILE)"
    )


def _state_dict(content: Any) -> dict[str, Tensor]:
    """The one mapping of names to tensors in what torch.save wrote."""
    if (
        isinstance(content, Mapping)
        and content
        and all(isinstance(value, Tensor) for value in content.values())
    ):
        if numbers := [key for key in content if not isinstance(key, str)]:
            raise NoWeights(
                f"has tensors under {numbers[0]!r}, which is no name: expected those of a model, as"
                " in fc.weight"
            )
        return dict(content)
    found = dict(_inside(content, DEPTH))
    for key in KEYS:
        for place in found:
            if place.rpartition(".")[2] == key:
                return found[place]
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise NoWeights(
            f"has several state dicts ({', '.join(found)}): save the one that is meant, alone"
        )
    if isinstance(content, Mapping):
        keys = ", ".join(
            f"{key!r} ({type(value).__name__})" for key, value in list(content.items())[:MOST_SHOWN]
        )
        raise NoWeights(
            f"holds no state dict (names and tensors), only {keys or 'an empty mapping'}"
        )
    raise NoWeights(f"holds no state dict (names and tensors), only a {type(content).__name__}")


def _inside(content: Any, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dicts below a mapping, each with its place as in `model.state_dict`."""
    if not isinstance(content, Mapping) or not depth:
        return
    for key, value in content.items():
        if not isinstance(value, Mapping) or not value:
            continue
        if all(isinstance(name, str) and isinstance(item, Tensor) for name, item in value.items()):
            yield str(key), dict(value)
        else:
            for place, found in _inside(value, depth - 1):
                yield f"{key}.{place}", found


def _bare(content: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what DataParallel, DDP and torch.compile put before the names of what they wrap, in
    any order, and torch.compile before those of a layer too. Names that would become equal stay.
    """
    bare: dict[str, Tensor] = {}
    for name, tensor in content.items():
        kept = name
        while kept.startswith(("module.", "_orig_mod.")):
            kept = kept.partition(".")[2]
        kept = kept.replace("._orig_mod.", ".")
        bare[kept] = tensor
    return bare if len(bare) == len(content) else content


def without_prefix(
    found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The tensors under the names that a model has, and what was left out before them: `model.` in
    a file of Lightning.

    That is clear where no name of the model's is in the file as it is, and one prefix alone makes
    at least half of them names that are. Else all stay as they are, and nothing ("") is left out.
    """
    if any(name in found for name in wanted):
        return dict(found), ""
    matches: dict[str, int] = {}
    for name in found:
        parts = name.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in wanted:
                prefix = ".".join(parts[:i]) + "."
                matches[prefix] = matches.get(prefix, 0) + 1
    ranked = sorted(matches.items(), key=lambda item: -item[1])
    enough = [prefix for prefix, count in ranked if count >= len(wanted) / 2]
    if len(enough) != 1:
        return dict(found), ""
    prefix = enough[0]
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}, prefix
