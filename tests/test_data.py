"""Prepared data: found, refused, fetched, made once and whole; each mistake told before anything
trains.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from launch.runs import progress
from tests import ranks
from trainer.config.data import CIFAR10Data, SyntheticData
from trainer.config.run import TrainConfig
from trainer.datasets import cifar10
from trainer.datasets.find import DATASETS, dataset
from trainer.datasets.prepare import prepare
from trainer.prepared import errors
from trainer.prepared.arrays import load
from trainer.ranks.group import World
from trainer.state import Trainer

PROJECT = Path(__file__).resolve().parents[1]
SYNTHETIC = SyntheticData(name="synthetic", samples=64, size=8)


def tool(folder: Path, data: dict[str, Any], *, allow: bool = False) -> list[str]:
    """The command line of trainer.tools.prepare for this data."""
    config = ranks.config("t", data=data, execution={"allow_unverified_data": allow})
    run = ranks.make_run(folder / "runs", config, {})
    return [
        sys.executable,
        "-m",
        "trainer.tools.prepare",
        str(run.config),
        "--data-dir",
        str(folder / "data"),
        "--cache-dir",
        str(folder / "cache"),
    ]


def call(argv: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False
    )


def small_cifar(folder: Path, per_batch: int = 5) -> None:
    """CIFAR-10's six files with a few pictures each: the layout, not the published bytes."""
    target = folder / "cifar-10-batches-py"
    target.mkdir(parents=True)
    rng = np.random.RandomState(0)
    for name in cifar10.PUBLISHED:
        pixels, labels = (
            rng.randint(0, 256, (per_batch, 3072)).astype(np.uint8),
            rng.randint(0, 10, per_batch),
        )
        batch = {"data": pixels, "labels": labels.tolist()}
        (target / name).write_bytes(pickle.dumps(batch))


def test_made_once_and_the_statistics_are_those_of_the_pixels(tmp_path: Path) -> None:
    first = prepare(SYNTHETIC, tmp_path, tmp_path)
    again = prepare(SYNTHETIC, tmp_path, tmp_path)
    assert first["made"] and not again["made"] and first["sha256"] == again["sha256"]
    data = load(ranks.make_run(tmp_path / "runs", ranks.config(), first))
    pixels = data.splits["train"].images.astype(np.float64) / 255
    np.testing.assert_allclose(data.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(data.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)
    other = prepare(SYNTHETIC.model_copy(update={"samples": 65}), tmp_path, tmp_path)
    assert other["path"] != first["path"]


def test_data_that_is_not_there_is_told_in_seconds(tmp_path: Path) -> None:
    done = call(tool(tmp_path, {"name": "cifar10"}))
    assert done.returncode == 2 and done.stdout == ""
    said = done.stderr
    assert (
        str(tmp_path / "data/cifar-10-batches-py") in said
        and "--data-dir" in said
        and "`digits` runs without" in said
    )
    assert "Traceback" not in said


def test_files_that_differ_from_the_published_ones_need_a_yes(tmp_path: Path) -> None:
    small_cifar(tmp_path / "data")
    refused = call(tool(tmp_path, {"name": "cifar10"}))
    assert refused.returncode == 2 and "differ from the published checksums" in refused.stderr
    assert "data_batch_1" in refused.stderr and "allow_unverified_data: true" in refused.stderr
    assert not list((tmp_path / "cache").glob("prepared/cifar10-*"))
    taken = call(tool(tmp_path, {"name": "cifar10"}, allow=True))
    assert taken.returncode == 0, taken.stderr
    manifest = json.loads(taken.stdout)
    assert manifest["samples"] == {"train": 25, "test": 5} and manifest["shape"] == [3, 32, 32]
    again = json.loads(call(tool(tmp_path, {"name": "cifar10"}, allow=True)).stdout)
    assert (
        manifest["made"]
        and not again["made"]
        and manifest["unverified"] == again["unverified"] == list(cifar10.PUBLISHED)
    )


def test_a_pickle_that_is_no_data_is_never_run(tmp_path: Path) -> None:
    small_cifar(tmp_path)
    marker = tmp_path / "owned"

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    (tmp_path / "cifar-10-batches-py/data_batch_3").write_bytes(
        pickle.dumps({"data": Evil(), "labels": []})
    )
    with pytest.raises(errors.DataError, match=r"wants to load \w+.system: it is no data"):
        prepare(CIFAR10Data(name="cifar10"), tmp_path, tmp_path / "cache", allow_unverified=True)
    assert not marker.exists()


def test_two_at_once_make_it_once(tmp_path: Path) -> None:
    argv = tool(tmp_path, {"name": "synthetic", "samples": 4000})
    both = [
        subprocess.Popen(
            argv, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    found = []
    for process in both:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found.append(json.loads(out))
    assert sorted(f["made"] for f in found) == [False, False, True]
    assert len({f["sha256"] for f in found}) == 1
    assert not [p for p in (tmp_path / "cache/prepared").iterdir() if p.name.startswith(".")]


def test_a_killed_prepare_leaves_nothing_that_counts(tmp_path: Path) -> None:
    argv = tool(tmp_path, {"name": "synthetic", "samples": 60_000})
    process = subprocess.Popen(
        argv, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    end = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("prepared/.synthetic-*.tmp")):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "cache").glob("prepared/synthetic-*"))
    whole = call(argv)
    assert whole.returncode == 0 and json.loads(whole.stdout)["made"], whole.stderr
    assert not [p for p in (tmp_path / "cache/prepared").iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_disk_is_told_and_the_next_try_is_clean(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(cache)], check=True)
    argv = tool(tmp_path, {"name": "synthetic", "samples": 4000})
    try:
        full = call(argv)
        assert (
            full.returncode == 2
            and "No space left on device" in full.stderr
            and "Traceback" not in full.stderr
        )
        assert not list(cache.glob("prepared/synthetic-*")) and not list(
            cache.glob("prepared/.*.tmp")
        )
        subprocess.run(["mount", "-o", "remount,size=64m", str(cache)], check=True)
        assert call(argv).returncode == 0
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_flips_and_normalising_are_what_they_say(tmp_path: Path) -> None:
    import torch

    from trainer.batches.batches import Batches, Sampling, augment

    settings = {"name": "synthetic", "samples": 64, "size": 8, "mean": [0.5] * 3, "std": [0.25] * 3}
    data = load(ranks.make_run(tmp_path, ranks.config(), prepare(SYNTHETIC, tmp_path, tmp_path)))
    images = torch.from_numpy(data.splits["train"].images.copy())

    def batches(**more: Any) -> Batches:
        train = TrainConfig.model_validate(
            ranks.config(data={**settings, **more}).train.model_dump()
        )
        return Batches(
            data,
            train.data,
            sampling=Sampling(1, 64, 64, rank=0, world_size=1),
            device=torch.device("cpu"),
            channels_last=True,
        )

    def augmented(**more: Any) -> torch.Tensor:
        made = batches(**more)
        return made.normalise(augment(images, torch.arange(64), 0, made.config, seed=1))

    plain = augmented()
    torch.testing.assert_close(plain, (images.float() / 255 - 0.5) / 0.25)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    flipped = augmented(random_horizontal_flip=True)
    mirrored = [
        bool(torch.equal(f, p.flip(2)) and not torch.equal(f, p))
        for f, p in zip(flipped, plain, strict=True)
    ]
    same = [bool(torch.equal(f, p)) for f, p in zip(flipped, plain, strict=True)]
    assert all(a or b for a, b in zip(mirrored, same, strict=True)) and 16 < sum(mirrored) < 48
    cropped = augmented(random_crop_padding=2)
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2)).float()
    for i in range(64):
        windows = [
            (padded[i, :, y : y + 8, x : x + 8] / 255 - 0.5) / 0.25
            for y in range(5)
            for x in range(5)
        ]
        assert any(torch.allclose(cropped[i], window) for window in windows)


def real_data() -> Path:
    """$BATCHYARD_DATA, or a skip; never a skip in CI."""
    folder = Path(os.environ.get("BATCHYARD_DATA", ""))
    if not folder.is_absolute() or not folder.is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "BATCHYARD_DATA names no folder with the real data sets"
        )
    return folder


@pytest.mark.parametrize("name", ["cifar10", "fashion_mnist"])
def test_the_real_data_as_torchvision_reads_it(name: str, tmp_path: Path) -> None:
    folder = real_data()
    torchvision = (
        pytest.importorskip("torchvision")
        if not os.environ.get("CI")
        else __import__("torchvision")
    )
    config = ranks.config(data={"name": name}).train.data
    manifest = prepare(config, folder, tmp_path, allow_unverified=True)
    assert manifest["unverified"] == ([] if name == "fashion_mnist" else list(cifar10.PUBLISHED))
    assert manifest["samples"] == {
        "train": 60_000 if name == "fashion_mnist" else 50_000,
        "test": 10_000,
    }
    data = load(ranks.make_run(tmp_path / "runs", ranks.config(), manifest))
    for split, train in (("train", True), ("test", False)):
        if name == "fashion_mnist":
            theirs = torchvision.datasets.FashionMNIST(str(folder), train=train)
            pixels, labels = theirs.data.numpy()[:, None], theirs.targets.numpy()
        # torchvision refuses files that went through JPEG; its own reading of them is the same
        # three lines
        else:
            content = {
                n: (folder / "cifar-10-batches-py" / n).read_bytes() for n in cifar10.PUBLISHED
            }
            names = [n for n in content if n.startswith("data") == train]
            parts = [pickle.loads(content[n], encoding="latin1") for n in names]
            pixels = np.concatenate([p["data"] for p in parts]).reshape(-1, 3, 32, 32)
            labels = np.concatenate([p["labels"] for p in parts])
        assert np.array_equal(data.splits[split].images, pixels) and np.array_equal(
            data.splits[split].labels, labels
        )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"data": {"name": "digits", "train_samples": 150}},
        {"data": {"name": "digits", "validation": 0.1}},
        {"data": {"name": "digits", "train_samples": 151, "validation": 0.999}},
        {"data": {"name": "digits", "train_samples": 1437}},
        {"data": {"name": "digits", "train_samples": 120, "validation": 0.2}, "max_steps": 1},
        {"max_steps": 10_000},
    ],
)
def test_the_steps_that_status_shows_before_a_run_begins_are_the_trainers(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    config = ranks.config(**{"data": {"name": "digits"}, **settings})
    run = ranks.make_run(tmp_path, config, prepare(config.train.data, tmp_path, tmp_path))
    world = World(0, 0, 1, torch.device("cpu"), run, run.attempt("local-1"), None)
    trainer = Trainer(
        config, world, load(run, config.train.data.validation, wanted=config.train.data.wanted())
    )
    assert progress.progress(run)["total"] == trainer.total_steps


def test_every_data_set_has_its_parts() -> None:
    for of in map(dataset, DATASETS):
        assert isinstance(of.VERSION, int) and of.__doc__
