"""What below a folder is data: names that never are, endings, and the sets that an earlier version
has prepared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import old_version, ranks
from tests.test_contents import replaced
from tests.test_data import call
from tests.test_imagefolder import picture_set, prepared, refused, settings
from tests.test_pictures import config, encoded, noise
from tests.test_segmentation import SETTINGS, write_scenes
from trainer.config.files.json_files import read_json, write_json
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load
from trainer.prepared.listing import NEVER_DATA, Listing
from trainer.tools import predict

LEFT = "left out, for such names are never data: "


def test_what_systems_leave_behind_is_never_data(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 2, "bees": 2})
    plain, _ = prepared(tmp_path, config())
    assert plain["notes"] == []
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/.ipynb_checkpoints/0-checkpoint.png").write_bytes(encoded(noise()))
    (root / "val/.Trash-1000").mkdir()  # in one split alone, and empty
    for name in sorted(NEVER_DATA):
        (root / "train/ants" / name).mkdir()
        (root / "train/ants" / name / "1.png").write_bytes(encoded(noise()))
    for name in ("._0.png", "._1.png", ".DS_Store", ".loose.png"):
        (root / "val/bees" / name).touch()
        (root / "val" / name).touch()
    again, _ = prepared(tmp_path, config())
    assert (again["path"], again["classes"]) == (plain["path"], ["ants", "bees"])
    assert again["notes"] == [
        f"{LEFT}._* (4), .DS_Store (2), .loose.png (2), #recycle (1), $RECYCLE.BIN (1), and 7 more"
    ]
    said = refused_in(tmp_path, train_folder="training")
    assert "it has train, val" in said


def refused_in(folder: Path, **more: Any) -> str:
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere/set").symlink_to(folder / "set")
    return refused(folder / "elsewhere", **more)


def test_of_one_folder_that_is_split_by_fractions_too(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"x": 6, "y": 6}, ("",))
    plain, _ = prepared(tmp_path, config(fractions=[0.5, 0.5]))
    for name in ("@eaDir", "lost+found", ".git"):
        (root / name).mkdir()
        (root / name / "1.png").write_bytes(encoded(noise()))
    again, _ = prepared(tmp_path, config(fractions=[0.5, 0.5]))
    assert again["path"] == plain["path"] and again["notes"] == [
        f"{LEFT}.git (1), @eaDir (1), lost+found (1)"
    ]


def test_of_a_folder_that_a_model_is_asked_about_too(tmp_path: Path) -> None:
    for name in ("1.png", "._1.png", "a/2.png", ".git/3.png", "a/@eaDir/4.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listing = Listing()
    asked = predict.find([tmp_path, tmp_path / "._1.png"], tmp_path / "out", listing)
    # who names it means it
    assert [one.file.name for one in asked] == ["1.png", "2.png", "._1.png"]
    assert listing.notes() == [f"{LEFT}._* (1), .git (1), @eaDir (1)"]


def test_other_endings_are_counted_by_name(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 1, "bees": 1})
    for number, format_ in enumerate(("GIF", "AVIF", "JPEG", "JPEG")):
        ending = ("gif", "avif", "jfif", "JPE")[number]
        (root / f"train/ants/x.{ending}").write_bytes(encoded(noise(), format_))
    (root / "train/bees/film.gif").write_bytes(
        encoded(noise(), "GIF", save_all=True, append_images=[noise()])
    )
    for name in (
        "train/ants/1.txt",
        "val/bees/2.TXT",
        "val/bees/3.npy",
        "val/bees/README",
        "labels.csv",
        "val/beside.csv",
    ):
        (root / name).touch()
    manifest, _ = prepared(tmp_path, config())
    assert manifest["samples"] == {"train": 7, "test": 2}
    assert manifest["notes"] == [
        "left out, for such endings are no image's here: .txt (2), .npy (1), no ending (1)",
        "1 image(s) have more frames or pages than one: the first is taken",
    ]


def test_a_narrow_range_of_sixteen_bits_is_reported(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 1, "bees": 1})
    deep = root / "train/ants/1.tif"
    deep.write_bytes(
        encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "TIFF")
    )
    (note,) = prepared(tmp_path, config())[0]["notes"]
    assert note.startswith(
        "1 image(s) of 16 bits use only the values 0 to 4095 of 0 to 65535: of 8 bits that is 0"
        " to 15"
    )
    deep.write_bytes(
        encoded(Image.fromarray((np.arange(4096, dtype=np.uint16) * 16).reshape(64, 64)), "TIFF")
    )
    assert prepared(tmp_path, config())[0]["notes"] == []


def test_images_of_more_pixels_are_taken_where_the_job_says_so(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 1, "bees": 1})
    (root / "train/ants/large.png").write_bytes(encoded(noise(40, 30)))
    how = {"random_resized_crop": {}, "skip_bad": True}
    few = prepare(config(**how), tmp_path, tmp_path / "cache", most_pixels=1000)
    many = prepare(config(**how), tmp_path, tmp_path / "cache", most_pixels=1200)
    assert (
        few["samples"]["train"] == 2
        and many["samples"]["train"] == 3
        and few["path"] != many["path"]
    )
    assert [s["reason"].startswith("more than 1,000 pixels") for s in few["skipped"]] == [True]
    data = load(ranks.make_run(tmp_path / "runs", ranks.config(), many))
    # by which the workers read it, too
    assert data.splits["train"].images.fit.most_pixels == 1200
    assert (
        ranks.config(execution={"max_image_pixels": 1}).train.digest()
        == ranks.config().train.digest()
    )


# --- what an earlier version has prepared


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_version.extract(tmp_path_factory.mktemp("old") / "project")


def started_by(old: Path, folder: Path, data: dict[str, Any], **train: Any) -> list[str]:
    """A run whose data the earlier version has prepared.

    Returns the command line that prepares it again.
    """
    run = ranks.make_run(folder / "runs", ranks.config("t", data=data, **train), {})
    arguments = [str(run.config), "--data-dir", str(folder), "--cache-dir", str(folder / "cache")]
    known = {"PYTHONPATH": str(old), "PATH": os.environ["PATH"]}
    write_json(run.config, without_younger_settings(read_json(run.config)))
    done = subprocess.run(
        [sys.executable, "-m", "trainer.prepare", *arguments],
        cwd=old,
        env=known,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    run.data_record.write_text(done.stdout)
    return [sys.executable, "-m", "trainer.tools.prepare", *arguments]


def without_younger_settings(written: dict[str, Any]) -> dict[str, Any]:
    written["execution"].pop("max_image_pixels", None)
    return written


def again(argv: list[str]) -> dict[str, Any]:
    done = call(argv)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_started_run_keeps_the_images_that_it_was_started_with(old: Path, tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 3, "bees": 3})
    (root / "train/ants/.hidden.png").write_bytes(encoded(noise()))
    (root / "train/ants/x.gif").write_bytes(encoded(noise(), "GIF"))
    argv = started_by(old, tmp_path, settings())
    before = read_json(tmp_path / "runs/t/data.json")
    assert before["samples"] == {"train": 7, "test": 6}
    found = again(argv)
    assert (found["path"], found["sha256"], found["made"]) == (
        before["path"],
        before["sha256"],
        False,
    )
    write_json(tmp_path / "runs/t/data.json", found)
    assert again(argv)["path"] == before["path"]  # and so does every later start
    image = root / "train/ants/1.png"
    replaced(image, image.read_bytes()[:-1] + b"\1")
    assert again(argv)["sha256"] != before["sha256"]  # other files: the run refuses them
    new = ranks.make_run(tmp_path / "runs", ranks.config("n", data=settings()), {})
    argv = [new.config.as_posix() if part.endswith("config.json") else part for part in argv]
    assert again(argv)["sha256"] != before["sha256"]


def test_a_started_run_keeps_the_masks_that_it_was_started_with(old: Path, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", rgb=False)
    argv = started_by(old, tmp_path, **SETTINGS)
    before = read_json(tmp_path / "runs/t/data.json")
    assert again(argv)["path"] == before["path"] and before["path"].startswith(
        str(tmp_path / "cache/prepared/voc-")
    )


def test_the_names_are_told_from_others_by_the_whole_name() -> None:
    listing = Listing()
    assert listing.data(["a.", "lost+found2", "eaDir", "__MACOSX "]) == [
        "__MACOSX ",
        "a.",
        "eaDir",
        "lost+found2",
    ]
    assert listing.notes() == []
