"""Classes of which nothing is trained on, images that are trained on and tested, names twice:
refused or said.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import ranks
from tests.test_data import call, tool
from tests.test_imagefolder import picture_set, settings
from tests.test_pictures import config, encoded, noise
from tests.test_segmentation import CLASSES, SETTINGS, write_mask, write_scenes
from trainer.config.data import DataConfig
from trainer.datasets.prepare import prepare
from trainer.prepared.classes import check
from trainer.prepared.errors import DataError


def notes(data: DataConfig, folder: Path, *, started: bool = False) -> list[str]:
    return check(data, prepare(data, folder, folder / "cache"), started=started)


def refusal(data: DataConfig, folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        notes(data, folder)
    return str(caught.value)


def of(**more: Any) -> DataConfig:
    return ranks.config(data={"name": "digits", **more}).train.data


def test_a_class_that_the_fractions_leave_without_a_train_image_is_refused(tmp_path: Path) -> None:
    picture_set(tmp_path / "data", dict.fromkeys("abcdefgh", 1), ("",))
    done = call(tool(tmp_path, settings(fractions=[0.5, 0.5])))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "imagefolder: no image of 4 classes (" in done.stderr
        and "is trained on, and the test split has some" in done.stderr
    )
    assert (
        "the split by train.data.fractions gives them none; another train.data.split_seed may"
        in done.stderr
    )
    (tmp_path / "runs/t/data.json").write_text(
        json.dumps(prepare(config(fractions=[0.5, 0.5]), tmp_path / "data", tmp_path))
    )
    # a run that has started is told
    done = call(tool_again(tmp_path, settings(fractions=[0.5, 0.5])))
    assert done.returncode == 0 and any(
        "no image of 4 classes" in note for note in json.loads(done.stdout)["notes"]
    )


def tool_again(folder: Path, data: dict[str, Any]) -> list[str]:
    record = (folder / "runs/t/data.json").read_text()
    argv = tool(folder, data)
    (folder / "runs/t/data.json").write_text(record)
    return argv


def test_a_class_that_is_held_out_or_cannot_be_read_is_refused(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"a": 1, "b": 1, "c": 1, "d": 1, "e": 20})
    assert notes(config(), tmp_path) == []
    said = refusal(config(validation=0.5), tmp_path)
    assert (
        "is trained on, and the test split has some: train.data.validation: 0.5 holds all of"
        " theirs out" in said
    )
    (root / "train/a/0.png").write_text("spoilt")
    assert "1 images cannot be read and are left out; mend them" in refusal(
        config(skip_bad=True), tmp_path
    )
    shutil.rmtree(root / "val/a")
    (root / "val/a").mkdir()
    (root / "val/a/0.png").write_text("spoilt")
    assert notes(config(skip_bad=True), tmp_path) == [
        "no image of the class a is trained on, nor tested"
    ]


def trained(data: DataConfig, folder: Path) -> bool:
    try:
        return not notes(data, folder)
    except DataError:
        return False


def test_where_the_job_cuts_the_train_images_itself_it_is_a_note(tmp_path: Path) -> None:
    (note,) = notes(of(train_samples=5), tmp_path)
    assert note.startswith("digits: no image of ") and note.endswith(
        "train.data.train_samples is too small for them"
    )
    assert notes(of(), tmp_path) == [] and notes(of(validation=0.1), tmp_path) == []
    table = {"name": "linear", "features": 2, "w": 1.0, "train_samples": 8, "test_samples": 4}
    assert (
        notes(ranks.config(data=table, model={"name": "mlp", "hidden": []}).train.data, tmp_path)
        == []
    )


def voc(**more: Any) -> DataConfig:
    return ranks.config(**{**SETTINGS, "data": {**SETTINGS["data"], **more}}).train.data


def test_classes_that_no_mask_names_or_only_the_test_list_has(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", rgb=False)
    assert notes(voc(), tmp_path) == []
    (note,) = notes(voc(classes=[*CLASSES, "blue"]), tmp_path)
    assert note == "no mask names the class blue: nothing of it is trained on, nor tested"
    masks = tmp_path / "scenes/SegmentationClass"
    with Image.open(masks / "val_05.png") as image:
        size = (image.height, image.width)
    write_mask(masks / "val_05.png", np.full(size, 3, np.uint8), rgb=False)
    (note,) = notes(voc(classes=[*CLASSES, "blue"]), tmp_path)
    assert (
        note
        == "no pixel of the class blue is trained on, and the test split has some: the train list"
        " names no image with it"
    )
    # smaller than the crop
    write_mask(masks / "train_00.png", np.full((20, 30), 3, np.uint8), rgb=False)
    said = refusal(voc(classes=[*CLASSES, "blue"]), tmp_path)
    assert (
        "no pixel of the class blue is trained on, and the test split has some: their images are"
        " smaller than train.data" in said
    )


def test_a_class_whose_only_scene_is_held_out(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", rgb=False)
    masks = tmp_path / "scenes/SegmentationClass"
    for name in ("train_06", "val_05"):
        with Image.open(masks / f"{name}.png") as image:
            size = (image.height, image.width)
        write_mask(masks / f"{name}.png", np.full(size, 3, np.uint8), rgb=False)
    four = [*CLASSES, "blue"]
    held = [
        part
        for part in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
        if not trained(voc(classes=four, validation=part), tmp_path)
    ]
    assert held and trained(voc(classes=four), tmp_path)
    assert f"train.data.validation: {held[0]} holds all of theirs out" in refusal(
        voc(classes=four, validation=held[0]), tmp_path
    )


def test_masks_that_are_void_throughout(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", rgb=False)
    masks = tmp_path / "scenes/SegmentationClass"
    for path in sorted(masks.glob("train_*.png")):
        with Image.open(path) as image:
            size = (image.height, image.width)
        write_mask(path, np.full(size, 255, np.uint8), rgb=False)
        if path.name == "train_05.png":
            assert (
                "4 train mask(s) are 255 throughout: nothing is learnt or counted there"
                in notes(voc(), tmp_path)
            )
    said = refusal(voc(), tmp_path)
    assert (
        said
        == "voc: no pixel of the train masks has a class: all are 255, which is left out of loss"
        " and accuracy"
    )


def test_an_image_that_is_trained_on_and_tested(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"a": 2, "b": 2})
    image = encoded(noise())
    for name in ("train/a/x.png", "val/b/y.png", "val/b/z.png"):
        (root / name).write_bytes(image)
    found = prepare(config(), tmp_path, tmp_path / "cache")["notes"]
    assert found == [
        "2 image(s) of the test split are trained on, too: val/b/y.png is train/a/x.png, ..."
    ]
    write_scenes(tmp_path / "scenes", rgb=False)
    pictures, masks = tmp_path / "scenes/JPEGImages", tmp_path / "scenes/SegmentationClass"
    for folder, ending in ((pictures, "jpg"), (masks, "png")):
        shutil.copyfile(folder / f"train_05.{ending}", folder / f"val_05.{ending}")
    found = prepare(voc(), tmp_path, tmp_path / "cache")["notes"]
    assert found == [
        "1 image(s) of the test split are trained on, too: JPEGImages/val_05.jpg is"
        " JPEGImages/train_05.jpg"
    ]
