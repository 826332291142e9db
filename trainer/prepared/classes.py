"""Which classes a run trains on: one of which it sees nothing is never predicted, whatever its
accuracy says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import steps
from trainer.config.data import DataConfig, ImageFolderData, SyntheticData, VOCData
from trainer.config.tables import TableData
from trainer.prepared.arrays import Split, mapped
from trainer.prepared.errors import DataError
from trainer.prepared.masks import VOID, EncodedMasks
from trainer.prepared.pictures import shown

MOST_NAMED = 5
RARE = 16  # scenes; that a class of more is held out whole is unlikely beyond counting


def check(config: DataConfig, record: dict[str, Any], *, started: bool) -> list[str]:
    """What a user should know of the classes of a prepared set, a line each. record: what prepare
    returned.

    Raises raw.DataError where the test split has a class of which nothing is trained on, unless the
    job cuts the train images itself (`train_samples`, a list of names), or the run has started.
    """
    if isinstance(config, TableData):
        return []
    if isinstance(config, VOCData):
        refused, notes = _of_masks(config, record)
    else:
        refused, notes = _of_images(config, record)
    if refused and not started:
        raise DataError("\n  ".join(refused))
    return refused + notes


def _of_images(config: Any, record: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(what is refused, what is reported)."""
    path, classes = Path(record["path"]), record["classes"]
    used, all_of_it = mapped(path, config.validation, config.wanted()).splits, mapped(path).splits
    train, test, whole = (
        _counts(split, len(classes)) for split in (used["train"], used["test"], all_of_it["train"])
    )
    unseen = np.flatnonzero(train == 0)
    tested = [classes[c] for c in unseen if test[c]]
    untested = [classes[c] for c in unseen if not test[c]]
    notes = [f"no image of {_named(untested)} is trained on, nor tested"] if untested else []
    if not tested:
        return [], notes

    line = f"{config.name}: no image of {_named(tested)} is trained on, and the test split has some"
    cut = isinstance(config, SyntheticData) or (
        config.wanted()[0] is not None and any(whole[c] for c in unseen)
    )
    if cut:
        setting = "samples" if isinstance(config, SyntheticData) else "train_samples"
        return [], [f"{line}: train.data.{setting} is too small for them", *notes]
    return [f"{line}: {_why(config, record, held_out=bool(whole[unseen].any()))}"], notes


def _why(config: Any, record: dict[str, Any], *, held_out: bool) -> str:
    """What took all images of a class, and what to try."""
    if held_out:
        return (
            f"train.data.validation: {config.validation} holds all of theirs out; a smaller part"
            " leaves some"
        )
    if record["skipped"]:
        return (
            f"{len(record['skipped'])} images cannot be read and are left out; mend them, or remove"
            " these classes"
        )
    if isinstance(config, ImageFolderData) and config.fractions is not None:
        return (
            "the split by train.data.fractions gives them none; another train.data.split_seed may,"
            " or more images of each class"
        )
    return "add some, or remove these classes from the test split"


def _of_masks(config: VOCData, record: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(what is refused, what is reported)."""
    if "pixels" not in record:  # prepared by an earlier version
        return [], []
    names, train, test = config.names(), record["pixels"]["train"], record["pixels"]["test"]
    empty = [split for split, found in (("train", train), ("test", test)) if not any(found["kept"])]
    if empty:
        return [
            f"voc: no pixel of the {split} masks has a class: all are {VOID}, which is left out of"
            " loss and accuracy"
            for split in empty
        ], []

    refused, notes = [], []
    for split, found in record["pixels"].items():
        if found["void"]:
            notes.append(
                f"{found['void']:,} {split} mask(s) are {VOID} throughout: nothing is learnt or"
                " counted there"
            )
    kept = _kept_in_training(config, record, train)
    unseen = [c for c in range(len(names)) if not kept[c]]
    small = [
        names[c] for c in unseen if train["listed"][c] and not train["kept"][c] and test["kept"][c]
    ]
    held = [names[c] for c in unseen if train["kept"][c] and test["kept"][c]]
    cut = [names[c] for c in unseen if not train["listed"][c] and test["kept"][c]]
    nowhere = [names[c] for c in unseen if not test["kept"][c]]
    of_test = "is trained on, and the test split has some"
    if small:
        refused.append(
            f"voc: no pixel of {_named(small)} {of_test}: their images are smaller than"
            " train.data.crop, which a smaller one keeps"
        )
    if held:
        refused.append(
            f"voc: no pixel of {_named(held)} {of_test}: train.data.validation: {config.validation}"
            " holds all of theirs out; a smaller part leaves some"
        )
    if cut:
        notes.append(f"no pixel of {_named(cut)} {of_test}: the train list names no image with it")
    if nowhere:
        notes.append(f"no mask names {_named(nowhere)}: nothing of it is trained on, nor tested")
    return refused, notes


def _kept_in_training(config: VOCData, record: dict[str, Any], train: dict[str, Any]) -> np.ndarray:
    """bool [classes]: whether some pixel is trained on, once the validation split is held out."""
    kept = np.array(train["kept"]) > 0
    if config.validation is None:
        return kept
    scenes = np.array(train["scenes"])
    held = steps.held_out(record["samples"]["train"], config.validation)
    rare = np.flatnonzero(kept & (scenes <= min(RARE, held)))
    if not rare.size:
        return kept
    split = mapped(Path(record["path"]), config.validation).splits["train"]
    kept[rare] = np.isin(rare, _present(split))
    return kept


def _present(split: Split) -> list[int]:
    assert isinstance(split.labels, EncodedMasks)
    numbers = range(len(split)) if split.chosen is None else split.chosen
    found: set[int] = set()
    for number in numbers:
        found.update(np.unique(split.labels.mask(int(number))).tolist())
    return sorted(found)


def _counts(split: Split, classes: int) -> np.ndarray:
    labels = np.asarray(split.labels if split.chosen is None else split.labels[split.chosen])
    return np.bincount(labels, minlength=classes)


def _named(classes: list[str]) -> str:
    """Classes as a sentence has them: `the class 'a'`, or `3 classes (a, b, c)`."""
    if len(classes) == 1:
        return f"the class {shown(classes[0])}"
    names = ", ".join(map(shown, classes[:MOST_NAMED])) + (
        ", ..." if len(classes) > MOST_NAMED else ""
    )
    return f"{len(classes)} classes ({names})"
