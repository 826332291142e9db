"""A data set is known by what its files contain: other pixels under the same size and time are
found, and nothing is read twice.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launch.sweeps import trial
from tests import ranks
from tests.cli import wait_for
from tests.test_data import PROJECT
from tests.test_imagefolder import settings
from tests.test_pictures import config
from tests.test_segmentation import SETTINGS, write_mask, write_scenes
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load
from trainer.prepared.contents import JUST_CHANGED_NS, Contents, Unreadable
from trainer.prepared.errors import DataError


def bitmaps(root: Path, level: int, count: int = 3) -> list[Path]:
    """Pictures of one level, all files of one size."""
    files = []
    for folder in ("train/ants", "train/bees", "val/ants", "val/bees"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            files.append(root / folder / f"{number}.bmp")
            Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(files[-1])
    return files


def replaced(path: Path, content: bytes) -> None:
    """Another content under the same size and time, as rsync -t and a restored backup leave it."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    now = path.stat()
    assert (now.st_size, now.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def old_enough(files: list[Path]) -> None:
    """Waits until files are remembered: one that has just changed might change again within a tick
    of the clock.
    """
    newest = max(file.stat().st_ctime_ns for file in files)
    wait_for("the files' ctime", lambda: time.time_ns() > newest + 1.1 * JUST_CHANGED_NS)


def test_another_image_of_the_same_size_and_time_gives_its_own_pixels(tmp_path: Path) -> None:
    files = bitmaps(tmp_path / "set", 10)
    old_enough(files)
    first = prepare(config(), tmp_path, tmp_path / "cache")
    bitmaps(tmp_path / "other", 200)
    replaced(files[0], (tmp_path / "other/train/ants/0.bmp").read_bytes())
    second = prepare(config(), tmp_path, tmp_path / "cache")
    assert second["path"] != first["path"] and second["sha256"] != first["sha256"]
    run = ranks.make_run(tmp_path / "runs", ranks.config(), second)
    assert load(run).splits["train"].images[0].max() == 200
    # a rename within the set is another set, the same files elsewhere are this one
    moved = tmp_path / "set/train/ants/9.bmp"
    files[1].rename(moved)
    assert prepare(config(), tmp_path, tmp_path / "cache")["made"]
    moved.rename(files[1])
    (tmp_path / "set").rename(tmp_path / "copy")
    assert prepare(config(folder="copy"), tmp_path, tmp_path / "cache")["path"] == second["path"]


def test_another_mask_of_the_same_size_and_time_gives_its_own_classes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", rgb=False)
    mask = tmp_path / "scenes/SegmentationClass/val_05.png"
    with Image.open(mask) as image:
        height, width = image.height, image.width
    contents = []
    for number in (1, 2):
        write_mask(mask, np.full((height, width), number, np.uint8), rgb=False)
        contents.append(mask.read_bytes())
    longest = max(map(len, contents))
    contents = [content.ljust(longest, b"\0") for content in contents]
    mask.write_bytes(contents[1])
    made = prepare(ranks.config(**SETTINGS).train.data, tmp_path, tmp_path / "cache")
    replaced(mask, contents[0])
    again = prepare(ranks.config(**SETTINGS).train.data, tmp_path, tmp_path / "cache")
    assert again["path"] != made["path"] and again["sha256"] != made["sha256"]


READS = """
import json, sys
from pathlib import Path
from tests.test_pictures import config
from trainer.datasets.prepare import prepare
folder, opened = Path(sys.argv[1]), []
sys.addaudithook(lambda event, found: event == "open" and opened.append(str(found[0])))
record = prepare(config(), folder, folder / "cache")
below = [name for name in opened if name.startswith(str(folder / "set"))]
print(json.dumps([len(below), record["made"]]))
"""


def opened(folder: Path) -> list[Any]:
    """How many files of the set a process of its own opens to prepare it, and whether
    it made it.
    """
    argv = [sys.executable, "-c", READS, str(folder)]
    done = subprocess.run(
        argv, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.mark.long
def test_what_a_stat_shows_to_be_unchanged_is_not_read_again(tmp_path: Path) -> None:
    files = bitmaps(tmp_path / "set", 10)
    old_enough(files)
    assert opened(tmp_path) == [24, True]  # once to know each, once to make a picture of it
    assert opened(tmp_path) == [0, False]
    os.utime(files[5])
    assert opened(tmp_path) == [1, False]
    (memory,) = (tmp_path / "cache/contents").iterdir()
    spoilt = bytearray(memory.read_bytes())
    spoilt[-1] ^= 1
    memory.write_bytes(spoilt)
    assert opened(tmp_path) == [12, False]  # an unreadable memory is none
    memory.unlink()
    memory.parent.rmdir()
    memory.parent.touch()  # no place for a memory
    assert opened(tmp_path) == [12, False] and opened(tmp_path) == [12, False]


def test_what_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    contents = Contents(tmp_path, {"train": ["a"]})
    contents.learn(tmp_path / "memory")
    assert (
        contents.known["a"].digest
        and not contents.known["a"].identity
        and not (tmp_path / "memory").exists()
    )


def test_a_file_that_changes_while_it_is_prepared_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    contents = Contents(tmp_path, {"train": ["a", "gone"]})
    contents.learn(tmp_path / "memory")
    assert contents.read("a") == b"1"
    with pytest.raises(Unreadable, match="No such file or directory"):
        contents.read("gone")
    (tmp_path / "a").write_bytes(b"2")
    with pytest.raises(
        DataError, match=rf"{tmp_path}/a was changed while it was prepared: submit again"
    ):
        contents.read("a")


def test_a_node_takes_the_record_of_the_data_that_submit_prepared(tmp_path: Path) -> None:
    """A trial of a search looks at no file where only what happens after prepare differs."""

    def of_trial(**data: Any) -> RunConfig:
        return ranks.config("t-00000001", data=settings(**data))

    template = RunDir(tmp_path / "template")
    assert trial.prepared_before(of_trial(), template) is None
    write_json(template.config, ranks.config(data=settings()).model_dump(mode="json"))
    write_json(template.data_record, {"sha256": "d0"})
    assert trial.prepared_before(
        of_trial(random_horizontal_flip=True, validation=0.5), template
    ) == {"sha256": "d0"}
    assert trial.prepared_before(of_trial(size=9), template) is None
    assert trial.prepared_before(of_trial(folder="other"), template) is None
    assert trial.prepared_before(of_trial(random_resized_crop={}), template) is None
