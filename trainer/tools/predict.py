"""`python -m trainer.tools.predict RUN_DIR/config.json PICTURE|FOLDER...`: what a run's model says
of pictures; one JSON object.

Under --out it writes a labelled picture for each, `<name>.predicted.png`; of a segmentation also
`<name>.mask.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainer.checkpoints import files
from trainer.checkpoints.files import NewerCheckpoint, NoCheckpoint
from trainer.config.files.json_files import to_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import EXIT_WRONG
from trainer.config.run import RunConfig
from trainer.output.captions import Line, captioned
from trainer.output.figures import laid_over
from trainer.prepared import pictures
from trainer.prepared.listing import Listing
from trainer.prepared.masks import colour_map
from trainer.prepared.pictures import BadPicture
from trainer.tools import trained
from trainer.tools.trained import TakesNoPictures, Trained

MOST_TOLD = 5  # classes of a picture
LABELLED, MASK = ".predicted.png", ".mask.png"
NOT_FINITE = "the model's outputs for it are not finite, so it is taken for nothing"


class NoPictures(Exception):
    """The call names none, or more than one for the same result; the message is for a person."""


class NoPlace(Exception):
    """What was predicted cannot be written; the message is for a person."""


class Asked(NamedTuple):
    """A picture that was asked for. result: the path of what is written for it, without
    its ending.
    """

    file: Path
    result: Path


def find(places: Sequence[Path], out: Path, listing: Listing) -> list[Asked]:
    """The pictures, in the order of `places`; of a folder all below it, by name.

    Raises NoPictures, which tells all that is wrong.

    listing: gains what is left out of the folders. Under `out` they lie as they lie in their
    folder.
    """
    asked, wrong = [], []
    for place in places:
        if place.is_dir():
            inside = sorted(file for file in files_in(place, listing) if file.is_file())
            asked += [Asked(file, out / file.relative_to(place)) for file in inside]
            wrong += (
                [] if inside else [f"{place} holds no picture ({' '.join(pictures.EXTENSIONS)})"]
            )
        elif place.exists():
            asked.append(Asked(place, out / place.name))
        else:
            wrong.append(f"there is no {place}")
    by_result: dict[Path, Path] = {}
    for file, result in asked:
        if by_result.setdefault(result, file).absolute() != file.absolute():
            wrong.append(
                f"{by_result[result]} and {file} would both be {result}{LABELLED}: name them in two"
                " calls"
            )
    if wrong or not asked:
        raise NoPictures("\n".join(wrong) or "no picture is named")
    return list(dict.fromkeys(asked))


def files_in(folder: Path, listing: Listing) -> Iterator[Path]:
    """The files in a folder and below it that are images by their names."""
    for place, folders, names in os.walk(folder):
        folders[:] = listing.data(folders)
        # not what an earlier call wrote
        inputs = [name for name in names if not name.endswith((LABELLED, MASK))]
        yield from (Path(place, name) for name in listing.pictures(inputs))


def predict(model: Trained, asked: Sequence[Asked]) -> Iterator[dict[str, Any]]:
    """Of each picture {file, labelled, top: [{class, probability}]}, the most probable first; of a
    segmentation, instead of `top`, {mask, classes: [{class, share}]}, shares of the pixels. {file,
    problem} where it cannot be read, or the outputs for it are not finite, which say nothing.
    Raises NoPlace.
    """
    segments = model.config.train.data.task == "segmentation"
    # whole pictures have sizes of their own; what a rank held
    at_once = 1 if segments else model.config.micro_batch_size()
    for start in range(0, len(asked), at_once):
        some, results, kept = asked[start : start + at_once], {}, []
        for one in some:
            try:
                image = model.read(one.file.read_bytes())
                kept.append((one, image, model.pixels(image)))
            except (BadPicture, OSError) as error:
                results[one] = {"problem": getattr(error, "strerror", None) or str(error)}
        outputs = (
            model.outputs(torch.from_numpy(np.stack([pixels for *_, pixels in kept])))
            if kept
            else []
        )
        for (one, image, pixels), output in zip(kept, outputs, strict=True):
            if segments:  # without what was added for the model
                pixels, output = (
                    array[:, : image.height, : image.width] for array in (pixels, output)
                )
            if not torch.isfinite(output).all():
                results[one] = {"problem": NOT_FINITE}
                continue
            results[one] = (
                mask(model, one, pixels, output) if segments else top(model, one, image, output)
            )
        for one in some:
            yield {"file": str(one.file), **results[one]}


def top(model: Trained, one: Asked, image: Image.Image, output: Tensor) -> dict[str, Any]:
    """Writes the labelled picture. output: float32 [classes], scores before softmax."""
    best = output.softmax(0).topk(min(MOST_TOLD, len(model.classes)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    found = [
        {"class": model.classes[number], "probability": probability}
        for number, probability in pairs
    ]
    lines = [Line(f"{f['class']} {f['probability']:.1%}") for f in found]
    return {"labelled": save(captioned(image, lines), one, LABELLED), "top": found}


def mask(model: Trained, one: Asked, pixels: np.ndarray, output: Tensor) -> dict[str, Any]:
    """Writes the mask, a PNG of the classes' numbers in VOC's colours, and the picture with it.
    pixels: uint8 [C, H, W]; output: float32 [classes, H, W].
    """
    guess = output.argmax(0).to(torch.uint8)
    numbers, counts = guess.unique(return_counts=True)
    found = [
        {
            "class": model.classes[int(numbers[i])],
            "share": int(counts[i]) / guess.numel(),
            "number": int(numbers[i]),
        }
        for i in counts.argsort(descending=True)
    ]
    palette = Image.fromarray(guess.numpy())
    palette.putpalette(colour_map().tobytes())
    lines = [
        Line(f"{f['class']} {f['share']:.1%}", tuple(colour_map()[f["number"]].tolist()))
        for f in found
    ]
    over = Image.fromarray(laid_over(pixels, guess.numpy()).transpose(1, 2, 0).copy())
    return {
        "labelled": save(captioned(over, lines), one, LABELLED),
        "mask": save(palette, one, MASK),
        "classes": found,
    }


def save(image: Image.Image, one: Asked, ending: str) -> str:
    """Writes a PNG by one rename; returns its path. Raises NoPlace."""
    path = one.result.with_name(one.result.name + ending)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(temporary, "PNG")
        temporary.replace(path)
    except OSError as error:
        raise NoPlace(
            f"{path} cannot be written ({error.strerror or error}): --out names another folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):  # its folder may be none
            temporary.unlink(missing_ok=True)
    return str(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    parser.add_argument("places", type=Path, nargs="+", metavar="PICTURE|FOLDER")
    arguments = parser.parse_args()
    run = RunDir(arguments.config.absolute().parent)
    config = RunConfig.model_validate_json(run.config.read_text())
    torch.set_num_threads(config.execution.threads_per_rank)
    kind = config.execution.device if torch.cuda.is_available() else "cpu"
    try:
        listing = Listing()
        asked = find(arguments.places, arguments.out, listing)
        for note in listing.notes():
            print(note, file=sys.stderr)
        which = "best" if (run.checkpoints / "best").is_symlink() else "latest"
        found, complaints = files.find(run, which)
        for complaint in complaints:
            print(f"checkpoint passed over: {complaint}", file=sys.stderr)
        model = trained.load(run, config, found, kind)
        told = list(predict(model, asked))
    except (NoPictures, NoPlace, NoCheckpoint, NewerCheckpoint, TakesNoPictures, OSError) as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)
    facts = {
        "run_id": run.run_id,
        "checkpoint": found.path.name,
        "which": which,
        "global_step": found.manifest["global_step"],
    }
    print(to_json({**facts, "classes": model.classes, "pictures": told}))


if __name__ == "__main__":
    main()
