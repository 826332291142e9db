"""`batchyard data`: counts worked out by other means, a grid that shows the pictures, an epoch that
is read whole.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import ranks
from tests.cli import Shell
from tests.test_segmentation import SETTINGS, write_scenes
from trainer.prepared.arrays import load
from trainer.tools import dataset

JOB = """train:
  epochs: 3
  global_batch_size: 64
  data: {name: digits, validation: 0.1}
  model: {name: mlp, hidden: [4]}
  optimizer: {name: sgd, lr: 0.1}
"""


def looked_at(folder: Path, workers: int = 0, **train: Any) -> dict[str, Any]:
    return dataset.look(
        ranks.config(**train), folder, folder / "cache", folder / "grid.png", workers
    )


def test_the_verb_prints_classes_counts_shapes_and_times(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    shell = Shell(tmp_path / "runs", env=(("XDG_CACHE_HOME", str(tmp_path / "cache")),))
    told = shell.run("data", str(job), "--workers", "1", "--out", str(tmp_path / "grid.png"))
    assert "digits: 1,293 train, 360 test, 144 val; each 1x8x8; 10 classes" in told
    assert (
        f"as the model is given them: {tmp_path / 'grid.png'}" in told
        and "prepared now in " in told
    )
    rows = [line.split() for line in told.splitlines()]
    counted = [row for row in rows if len(row) == 4 and row[0].isdigit() and len(row[0]) == 1]
    assert [row[0] for row in counted] == list("0123456789")
    assert [sum(int(row[column].replace(",", "")) for row in counted) for column in (1, 2, 3)] == [
        1293,
        360,
        144,
    ]
    assert "from the device's memory" in told and "0 worker(s)" in told and "1 worker(s)" in told
    with Image.open(tmp_path / "grid.png") as sheet:
        assert sheet.width == sheet.height * 172 // 190  # four by four, a line of text below each
    assert "prepared before in " in shell.run(
        "data", str(job), "--workers", "0", "--out", str(tmp_path / "grid.png")
    )
    assert not (tmp_path / "runs").exists()


def test_counts_of_masks_are_pixels_and_each_picture_shows_its_mask(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", rgb=False)
    told = looked_at(tmp_path, **SETTINGS)
    assert told["counted"] == "pixels" and told["given"] == [3, 32, 64] and told["skipped"] == 4
    found = np.zeros(256, np.int64)
    for i in range(2, 13):
        with Image.open(tmp_path / "scenes/SegmentationClass" / f"train_{i:02}.png") as mask:
            found += np.bincount(np.asarray(mask).reshape(-1), minlength=256)
    assert told["splits"]["train"] == {"samples": 11, "counts": found[:3].tolist()}
    # encoded pictures never live on the device
    assert [read["workers"] for read in told["reads"]] == [0]
    with Image.open(told["grid"]) as sheet:
        pixels = np.asarray(sheet.convert("RGB")).reshape(-1, 3)
    # red on red
    assert ((pixels[:, 0] > 2 * pixels[:, 1].astype(int) + 40) & (pixels[:, 0] > 100)).sum() > 1000


def test_a_reading_is_of_every_sample_once_or_says_that_it_is_not(tmp_path: Path) -> None:
    told = looked_at(tmp_path, data={"name": "synthetic", "samples": 250, "size": 8}, workers=1)
    assert [(read["workers"], read["samples"], read["whole"]) for read in told["reads"]] == [
        (w, 250, True) for w in (None, 0, 1)
    ]
    config = ranks.config(data={"name": "synthetic", "samples": 250, "size": 8})
    run = ranks.make_run(
        tmp_path, config, {**dataset.prepare(config.train.data, tmp_path, tmp_path / "cache")}
    )
    part = dataset.read(load(run), config, 0, longest_s=0.0)
    assert (part["samples"], part["whole"]) == (100, False) and part["epoch_s"] == pytest.approx(
        2.5 * part["seconds"]
    )
    whole = dataset.read(load(run), config, 0)
    assert whole["whole"] and whole["epoch_s"] == whole["seconds"] >= whole["first_s"]


def test_a_table_has_rows_and_no_classes(tmp_path: Path) -> None:
    data = {"name": "linear", "features": 2, "w": 1.0, "train_samples": 80, "test_samples": 4}
    told = looked_at(tmp_path, data=data, model={"name": "mlp", "hidden": []})
    assert (
        told["classes"] == []
        and told["grid"] is None
        and told["splits"]["test"] == {"samples": 4, "counts": None}
    )
    assert [read["samples"] for read in told["reads"]] == [80]


def test_data_that_are_not_there_are_told(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(
        JOB.replace(
            "{name: digits, validation: 0.1}", "{name: imagefolder, folder: birds, size: 16}"
        )
    )
    told = Shell(tmp_path / "runs").run("data", str(job), "--data-dir", str(tmp_path), code=2)
    assert (
        told.startswith(f"batchyard: imagefolder: there is no folder {tmp_path / 'birds'}")
        and "Traceback" not in told
    )


def test_the_real_ants_and_bees(tmp_path: Path) -> None:
    folder = Path(os.environ.get("BATCHYARD_DATA", ""))
    if not (folder / "hymenoptera_data").is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "BATCHYARD_DATA names no folder with the real data sets"
        )
    config = ranks.config(data={"name": "imagefolder", "folder": "hymenoptera_data", "size": 64})
    told = dataset.look(config, folder, tmp_path, tmp_path / "grid.png", 0)
    for split, name in (("train", "train"), ("test", "val")):
        there = [
            len(list((folder / "hymenoptera_data" / name / label).iterdir()))
            for label in told["classes"]
        ]
        assert told["splits"][split] == {"samples": sum(there), "counts": there}
