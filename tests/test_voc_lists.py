"""VOC's layout as it is met: lists by other editors and programs, images and masks of other
formats, told once where not clear.
"""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import ranks
from tests.test_imagefolder import picture_set, refused
from tests.test_pictures import config, encoded, noise
from tests.test_segmentation import SETTINGS, write_scenes
from trainer.datasets.prepare import prepare
from trainer.prepared import masks
from trainer.prepared.errors import DataError
from trainer.prepared.pictures import BadPicture

DATA = ranks.config(**SETTINGS).train.data


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Scenes as VOC has them, and what is prepared of them."""
    folder = tmp_path_factory.mktemp("voc")
    write_scenes(folder / "scenes", rgb=False, samples=(4, 3), small=0)
    return folder, prepare(DATA, folder, folder / "cache")


@pytest.fixture
def scenes(tmp_path: Path, usual: tuple[Path, dict[str, Any]]) -> Path:
    shutil.copytree(usual[0] / "scenes", tmp_path / "scenes")
    return tmp_path / "scenes"


def rewritten(root: Path, line: str, encoding: str = "utf-8") -> dict[str, Any]:
    """What is prepared where each name of the lists is written as `line` says."""
    for listed in (root / "ImageSets/Segmentation").iterdir():
        names = listed.read_text().split()
        listed.write_bytes("".join(line.format(name) for name in names).encode(encoding))
    return prepare(DATA, root.parent, root.parent / "cache")


@pytest.mark.parametrize(
    ("line", "encoding"),
    [
        ("{}\r\n", "utf-8-sig"),
        ("{}\r\n", "utf-16"),
        ("{}.jpg\n", "utf-8"),
        ("{} ", "utf-8"),
        ("  {} \n\n", "utf-8"),
        ("JPEGImages/{0}.jpg SegmentationClass/{0}.png\n", "utf-8"),
        ("/VOC2012/JPEGImages/{0}.jpg /VOC2012/SegmentationClass/{0}.png\n", "utf-8"),
    ],
)
def test_a_list_is_read_where_it_is_clear(
    scenes: Path, usual: tuple[Path, dict[str, Any]], line: str, encoding: str
) -> None:
    found = rewritten(scenes, line, encoding)
    assert (found["sha256"], found["notes"]) == (usual[1]["sha256"], [])


def test_labels_behind_and_names_twice_are_reported(
    scenes: Path, usual: tuple[Path, dict[str, Any]]
) -> None:
    found = rewritten(scenes, "{}  -1\n")
    assert found["sha256"] == usual[1]["sha256"]
    assert found["notes"] == [
        f"{name}.txt has labels behind {count} name(s), which are not used"
        for name, count in (("train", 4), ("val", 3))
    ]
    (scenes / "ImageSets/Segmentation/train.txt").write_text("train_00\ntrain_01\ntrain_01\n")
    found = prepare(DATA, scenes.parent, scenes.parent / "cache")
    assert (
        "train.txt names 1 image(s) more than once, and so they are used: train_01 (2)"
        in found["notes"]
    )
    assert found["samples"]["train"] == 3


def renamed(root: Path, old: str, new: str) -> None:
    for folder, ending in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (root / folder / f"{old}.{ending}").rename(root / folder / f"{new}.{ending}")


def test_names_with_spaces_accents_and_other_endings(
    scenes: Path, usual: tuple[Path, dict[str, Any]]
) -> None:
    renamed(scenes, "train_01", "a b")
    renamed(scenes, "train_02", unicodedata.normalize("NFD", "café"))
    image = scenes / "JPEGImages/train_03.jpg"
    with Image.open(image) as opened:
        opened.save(image.with_suffix(".PNG"))
    image.unlink()
    (scenes / "ImageSets/Segmentation/train.txt").write_text("train_00\na b\ncafé\ntrain_03\n")
    found = prepare(DATA, scenes.parent, scenes.parent / "cache")
    assert found["samples"] == usual[1]["samples"] and found["mean"] == usual[1]["mean"]
    shutil.copyfile(image.with_suffix(".PNG"), image.with_suffix(".bmp"))
    with pytest.raises(
        DataError,
        match=r"train_03.jpg: there are JPEGImages/train_03.PNG, JPEGImages/train_03.bmp: keep one",
    ):
        prepare(DATA, scenes.parent, scenes.parent / "cache")


def test_what_is_not_clear_is_told_as_what_it_is(scenes: Path) -> None:
    listed = scenes / "ImageSets/Segmentation/train.txt"
    listed.write_text("train_00\n\u200btrain_01\nnowhere\n")
    with pytest.raises(DataError) as caught:
        prepare(DATA, scenes.parent, scenes.parent / "cache")
    assert r"\u200btrain_01.jpg'" in str(caught.value) and "JPEGImages/nowhere.jpg" in str(
        caught.value
    )
    listed.write_bytes(b"train_00\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"train.txt is no UTF-8 text: byte 12 is 0xe9"):
        prepare(DATA, scenes.parent, scenes.parent / "cache")


def test_masks_are_read_where_they_are_clear_and_told_once(
    scenes: Path, usual: tuple[Path, dict[str, Any]]
) -> None:
    folder = scenes / "SegmentationClass"
    for path in folder.iterdir():
        mask = np.asarray(Image.open(path))
        rgba = np.dstack([masks.colour_map()[mask], np.full(mask.shape, 255, np.uint8)])
        Image.fromarray(rgba).save(path)
    assert prepare(DATA, scenes.parent, scenes.parent / "cache")["sha256"] == usual[1]["sha256"]
    for path in folder.iterdir():
        Image.new("RGB", (80, 50)).save(path, "JPEG")
    with pytest.raises(DataError) as caught:
        prepare(DATA, scenes.parent, scenes.parent / "cache")
    assert str(caught.value).splitlines()[1:] == [
        "  train_00, train_01, train_02 and 4 more: the mask is a file of the format JPEG: its"
        " classes are certain in a PNG alone"
    ]


def test_one_mask() -> None:
    assert masks.read(encoded(Image.fromarray(np.array([[True, False]]))), 2).tolist() == [[1, 0]]
    grey = Image.merge("LA", [Image.new("L", (2, 1), 1), Image.new("L", (2, 1), 255)])
    assert masks.read(encoded(grey), 2).tolist() == [[1, 1]]
    for data, reason in (
        (encoded(Image.new("RGBA", (2, 1))), "a mask with transparent pixels"),
        (b"<html>", "the mask is no image by its content"),
        (encoded(noise(), "GIF"), "a file of the format GIF"),
    ):
        with pytest.raises(BadPicture, match=reason) as caught:
            masks.read(data, 2)
        assert "BytesIO" not in str(caught.value)


def test_class_folders_at_once_are_told_of_fractions(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 1, "bees": 1}, ("",))
    assert (
        refused(tmp_path)
        == f"imagefolder: {root} has no folder 'train' and no 'val', but folders with pictures"
        " (ants, bees): where these are the classes, train.data.fractions splits them, as in"
        " fractions: [0.8, 0.2]"
    )


def test_names_that_look_alike_are_one_class_over_the_splits_and_two_within_one(
    tmp_path: Path,
) -> None:
    root = picture_set(tmp_path, {"café": 2, "cafz": 1, "tea": 3})
    composed, other = root / "val/café", root / "val" / unicodedata.normalize("NFD", "café")
    composed.rename(other)
    found = prepare(config(), tmp_path, tmp_path / "cache")
    assert found["classes"] == ["café", "cafz", "tea"] or found["classes"] == [
        "cafz",
        "café",
        "tea",
    ]
    labels = np.load(Path(found["path"]) / "test-labels.npy")
    assert (
        np.bincount(labels)[found["classes"].index("café")] == 2
        and np.bincount(labels)[found["classes"].index("tea")] == 3
    )
    shutil.copytree(other, composed)
    said = refused_now(tmp_path)
    assert (
        "look alike, 'cafe\\u0301' and 'caf\\xe9'" in said
        or "look alike, 'caf\\xe9' and 'cafe\\u0301'" in said
    )


def refused_now(folder: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config(), folder, folder / "cache")
    return str(caught.value)
