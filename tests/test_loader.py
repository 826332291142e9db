"""Batches through a DataLoader: the very bits of those on the device, whatever the number of
workers; and how workers end.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import ranks
from tests.cli import wait_for
from tests.test_imagefolder import picture_set
from tests.test_pictures import config as folder_config
from tests.test_pictures import torchvision
from trainer import randomness
from trainer.batches.batches import Batches, Sampling, augment
from trainer.batches.loader import Loader, crop_box
from trainer.config.data import RandomResizedCrop
from trainer.config.files.json_files import read_json, read_jsonl
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load
from trainer.prepared.errors import DataError

CROPPED = {
    "name": "imagefolder",
    "folder": "set",
    "size": 8,
    "random_resized_crop": {},
    "random_horizontal_flip": True,
    "skip_bad": True,
}
CPU = torch.device("cpu")


def sampling(seed: int = 0) -> Sampling:
    return Sampling(seed, global_batch_size=10, micro_batch_size=4, rank=0, world_size=1)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("folders")
    root = picture_set(folder, {"ants": 70, "bees": 77})
    (root / "train/bees/text.png").write_text("text")
    return prepare(ranks.config(data=CROPPED).train.data, folder, folder / "cache")


@pytest.fixture
def made() -> Iterator[Callable[..., Loader]]:
    """Makes loaders of the folders, and ends their workers."""
    loaders: list[Loader] = []

    def make(
        folder: Path,
        manifest: dict[str, Any],
        *,
        workers: int,
        seed: int = 0,
        data: Any = None,
        **more: Any,
    ) -> Loader:
        prepared = load(
            ranks.make_run(folder, ranks.config(), manifest), more.pop("validation", None)
        )
        loaders.append(
            Loader(
                prepared,
                data or folder_config(**{k: v for k, v in CROPPED.items() if k != "name"}),
                workers=workers,
                epochs=2,
                sampling=sampling(seed),
                device=CPU,
                **more,
            )
        )
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def trained(
    folder: Path,
    manifest: dict[str, Any],
    world_size: int = 1,
    *,
    parts: tuple[dict[str, Any], ...] = ({},),
    **train: Any,
) -> tuple[str, bytes]:
    """(weights_sha256, metrics.jsonl) of a run of one attempt for each of `parts`: its execution
    settings, stop_after_step too.
    """
    run = ranks.make_run(folder, ranks.config(ranks=world_size, **train), manifest)
    for number, how in enumerate(parts, start=1):
        ranks.set_execution(run, **{"stop_after_step": None, **how})
        assert ranks.train(run, f"local-{number}", world_size) == 0, ranks.logs(run)
    outcome = Outcome.read(run.attempt(f"local-{len(parts)}").outcome)
    assert outcome is not None and outcome.status == "completed" and outcome.weights_sha256, (
        ranks.logs(run)
    )
    return outcome.weights_sha256, run.metrics.read_bytes()


def loaded(workers: int, stop_after_step: int | None = None) -> dict[str, Any]:
    return {"device_data_gb": 0.0, "workers": workers, "stop_after_step": stop_after_step}


def log(folder: Path, attempt: int) -> str:
    return RunDir(folder / "t-00000000").attempt(f"local-{attempt}").rank_log(0).read_text()


def test_the_same_bits_as_on_the_device_for_any_workers_and_stops(
    tmp_path: Path, digits: dict[str, Any]
) -> None:
    on_the_device = trained(tmp_path / "a", digits)
    assert "the train pictures live on the device" in log(tmp_path / "a", 1)
    assert trained(tmp_path / "b", digits, parts=(loaded(0),)) == on_the_device
    # twice within an epoch, and with other workers each time
    assert (
        trained(tmp_path / "c", digits, parts=(loaded(1, 3), loaded(2, 22), loaded(1)))
        == on_the_device
    )
    for folder, attempt, workers in (("b", 1, 0), ("c", 1, 1), ("c", 2, 2)):
        assert f"come through a DataLoader with {workers} worker(s)" in log(
            tmp_path / folder, attempt
        )


def test_the_same_bits_on_two_ranks(tmp_path: Path, digits: dict[str, Any]) -> None:
    on_the_device = trained(tmp_path / "a", digits, 2, epochs=1)
    assert trained(tmp_path / "b", digits, 2, parts=(loaded(1),), epochs=1) == on_the_device


def test_random_crops_of_a_folder_do_not_depend_on_workers_or_stops(
    tmp_path: Path, folders: dict[str, Any]
) -> None:
    train = {
        "data": {**CROPPED, "validation": 0.1},
        "global_batch_size": 40,
        "micro_batch_size": 13,
    }
    alone = trained(tmp_path / "a", folders, parts=({"workers": 0},), **train)
    assert (
        trained(
            tmp_path / "b",
            folders,
            parts=({"workers": 2, "stop_after_step": 2}, {"workers": 2}),
            **train,
        )
        == alone
    )
    rows = read_jsonl(tmp_path / "b/t-00000000/metrics.jsonl")
    assert {row["split"] for row in rows if row["kind"] == "eval"} == {"val", "test"}
    outcome = Outcome.read(RunDir(tmp_path / "b/t-00000000").attempt("local-2").outcome)
    assert outcome is not None and outcome.extra["skipped_pictures"] == 1
    assert "1 picture(s) cannot be used and are left out; " in log(tmp_path / "b", 1)


def test_batches_are_a_function_of_the_step(
    tmp_path: Path, folders: dict[str, Any], made: Callable[..., Loader]
) -> None:
    alone, helped = made(tmp_path, folders, workers=0), made(tmp_path, folders, workers=2)
    other = made(tmp_path, folders, workers=0, seed=1)
    assert alone.plan.steps_at_once == 3 and alone.steps_per_epoch == 15
    # twice the same, on, forwards, over an epoch's end, back
    for step in (0, 0, 1, 2, 3, 4, 7, 14, 15, 29, 5):
        ours, theirs = helped.at(step), alone.at(step)
        assert [b.chunk for b in ours] == ([0, 1, 2] if step % 15 < 14 else [0, 1]) and len(
            ours
        ) == len(theirs)
        for a, b, c in zip(ours, theirs, other.at(step), strict=True):
            assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
            assert not torch.equal(a.images, c.images)
    first, second = (
        torch.cat([b.labels for step in steps for b in alone.at(step)])
        for steps in (range(15), range(15, 30))
    )
    assert torch.bincount(first).tolist() == torch.bincount(second).tolist() == [
        70,
        77,
    ] and not torch.equal(first, second)


def test_a_picture_that_can_no_longer_be_read_is_named(
    tmp_path: Path, folders: dict[str, Any], made: Callable[..., Loader]
) -> None:
    spoilt = tmp_path / "spoilt"
    subprocess.run(["cp", "-r", folders["path"], spoilt], check=True)
    offsets = np.load(spoilt / "train-offsets.npy")
    with (spoilt / "train-encoded.bin").open("r+b") as file:
        file.seek(offsets[71])
        file.write(bytes(int(offsets[72] - offsets[71])))
    loader = made(tmp_path, {**folders, "path": str(spoilt)}, workers=1)
    with pytest.raises(
        DataError, match=r"^train/bees/1.png could be read when it was prepared and now cannot"
    ):
        for step in range(15):
            loader.at(step)
    run = ranks.make_run(
        tmp_path, ranks.config("named-00000000", data=CROPPED), {**folders, "path": str(spoilt)}
    )
    assert ranks.train(run, "local-1", 1) != 0
    evidence = read_json(run.attempt("local-1").rank_evidence(0))
    assert evidence["type"] == "DataError" and evidence["message"].startswith(
        "train/bees/1.png could be read"
    )


def test_a_worker_that_dies_is_told(
    tmp_path: Path, folders: dict[str, Any], made: Callable[..., Loader]
) -> None:
    loader = made(tmp_path, folders, workers=1)
    loader.at(0)
    (worker,) = loader.processes
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(
        RuntimeError, match=r"^a DataLoader worker was killed by SIGKILL: often too little memory"
    ):
        for step in range(30):
            loader.at(step)


def test_no_more_workers_than_cpus(
    tmp_path: Path, folders: dict[str, Any], made: Callable[..., Loader]
) -> None:
    # torch warns of it, and warnings are errors here
    loader = made(tmp_path, folders, workers=1000)
    cpus = len(os.sched_getaffinity(0))
    assert loader.workers == cpus and loader.where.endswith(
        f"{cpus} worker(s), one a CPU here (1000 asked for)"
    )


def children(pid: int) -> set[int]:
    """All living descendants of a process."""
    found, known = {pid}, set()
    while found != known:
        known = set(found)
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = entry.read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[1]) in found and fields[0] != "Z":
                found.add(int(entry.parent.name))
    return found - {pid}


def alive(pids: set[int]) -> list[int]:
    living = []
    for pid in pids:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX":
                living.append(pid)
        except OSError:
            continue
    return living


def one_rank(run: RunDir, **environment: str) -> subprocess.Popen[bytes]:
    """A rank in a session of its own, so that a signal can reach it together with its workers."""
    env = {
        **os.environ,
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "BATCHYARD_ATTEMPT": "local-1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    run.attempt("local-1").path.mkdir(parents=True)
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", str(run.config)], env=env, start_new_session=True
    )


def workers_of(rank: subprocess.Popen[bytes], number: int) -> Callable[[], set[int] | None]:
    """The server that workers are forked from, its workers and the tracker of their shared memory,
    once all are there.
    """

    def look() -> set[int] | None:
        assert rank.poll() is None
        found = children(rank.pid)
        return found if len(found) >= number + 2 else None

    return look


ASKED_TO_STOP = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGTERM)


def test_signals_to_every_process_lose_nothing_and_leave_nothing(
    tmp_path: Path, digits: dict[str, Any]
) -> None:
    """Slurm and torchrun signal every process.

    Workers that died of it would take the checkpoint with them.
    """
    run = ranks.make_run(
        tmp_path, ranks.config(execution={"device_data_gb": 0.0, "workers": 2}, epochs=2000), digits
    )
    rank = one_rank(run)
    try:
        found = wait_for("workers", workers_of(rank, 2))
        for pid in found:  # as soon as they are there
            for number in ASKED_TO_STOP:
                os.kill(pid, number)
        wait_for(
            "more steps than are made ahead",
            lambda: len(read_jsonl(run.metrics)) > 30 or rank.poll(),
        )
        assert rank.poll() is None and set(alive(found)) == found, ranks.logs(run)
        for number in ASKED_TO_STOP:
            os.killpg(rank.pid, number)
        assert rank.wait(timeout=60) == 0, ranks.logs(run)
    finally:
        rank.kill()
    outcome = Outcome.read(run.attempt("local-1").outcome)
    assert (
        outcome is not None
        and outcome.status == "stopped"
        and (run.checkpoints / "latest").exists()
    ), ranks.logs(run)
    wait_for("the end of all processes", lambda: not alive(found))


@pytest.mark.long
def test_workers_end_with_a_killed_rank_and_after_an_error(
    tmp_path: Path, digits: dict[str, Any]
) -> None:
    how = {"device_data_gb": 0.0, "workers": 2}
    run = ranks.make_run(tmp_path / "killed", ranks.config(execution=how, epochs=2000), digits)
    rank = one_rank(run)
    found = wait_for("workers", workers_of(rank, 2))
    wait_for("steps", lambda: run.metrics.exists() and run.metrics.stat().st_size)
    (server,) = [pid for pid in found if children(pid)]
    # the workers' parent, by whose end torch would tell that the rank is gone
    os.kill(server, signal.SIGSTOP)
    try:
        rank.kill()
        rank.wait()
        wait_for("the end of the workers", lambda: len(alive(found)) == 1)
    finally:
        os.kill(server, signal.SIGCONT)
    wait_for("the end of the server", lambda: not alive(found))

    run = ranks.make_run(tmp_path / "error", ranks.config(execution=how, epochs=2000), digits)
    rank = one_rank(run, BATCHYARD_FAULT="exception:0:200")
    try:
        found = wait_for("workers", workers_of(rank, 2))
        wait_for("steps", lambda: run.metrics.exists() and run.metrics.stat().st_size)
        assert rank.wait(timeout=60) not in (0, -signal.SIGTERM)
    finally:
        rank.kill()
    wait_for("the end of all processes", lambda: not alive(found))


# --- what is drawn


def test_crops_and_flips_at_once_are_those_of_one_after_the_other() -> None:
    images = torch.from_numpy(
        np.random.RandomState(0).randint(0, 256, (50, 3, 9, 7)).astype(np.uint8)
    )
    index = torch.arange(1000, 1050)
    config = folder_config(random_crop_padding=3, random_horizontal_flip=True)
    made = augment(images, index, 4, config, seed=5)
    y = randomness.integers(randomness.key(5, randomness.CROP_Y, 4), index, 7).tolist()
    x = randomness.integers(randomness.key(5, randomness.CROP_X, 4), index, 7).tolist()
    flip = randomness.integers(randomness.key(5, randomness.FLIP, 4), index, 2).tolist()
    padded = torch.nn.functional.pad(images, (3, 3, 3, 3))
    for i in range(50):
        expected = padded[i, :, y[i] : y[i] + 9, x[i] : x[i] + 7]
        assert torch.equal(made[i], expected.flip(2) if flip[i] else expected), i
    assert torch.equal(augment(images[7:9], index[7:9], 4, config, seed=5), made[7:9])
    grey = augment(images[:, :1], index, 4, config, seed=5)
    # the weights of runs on digits hang on it
    assert torch.equal(grey, made[:, :1]) and grey.stride() == (63, 1, 7, 1)


def test_uniform_numbers() -> None:
    counters = torch.arange(100_000)
    drawn = randomness.uniform(7, counters)
    assert drawn.dtype == torch.float64 and drawn.min() >= 0 and drawn.max() < 1
    assert torch.equal(drawn[40:50], randomness.uniform(7, counters[40:50]))
    assert abs(float(drawn.mean()) - 0.5) < 4 * math.sqrt(1 / 12 / 100_000)
    counts = torch.histc(drawn, 10, 0, 1)
    # chi square, 9 degrees of freedom, p = 0.001; fixed counters
    assert float(((counts - 10_000) ** 2 / 10_000).sum()) < 27.9


@pytest.mark.parametrize(
    ("width", "height", "scale"),
    [(500, 375, [0.08, 1.0]), (200, 600, [0.08, 1.0]), (200, 600, [0.3, 0.4])],
)
def test_crops_are_distributed_as_torchvisions(width: int, height: int, scale: list[float]) -> None:
    transform = torchvision("transforms").RandomResizedCrop
    image, ratio, n = torch.zeros(3, height, width), [3 / 4, 4 / 3], 4000
    torch.manual_seed(0)
    theirs = np.array([transform.get_params(image, scale, ratio) for _ in range(n)], float)[
        :, [1, 0, 3, 2]
    ]
    config = RandomResizedCrop(scale=scale)
    ours = np.array([crop_box(width, height, config, 1, 2, sample) for sample in range(n)], float)

    def looks(boxes: np.ndarray) -> np.ndarray:
        left, top, w, h = boxes.T
        return np.stack([w * h / (width * height), np.log(w / h), left / width, top / height])

    ours_mean, theirs_mean = looks(ours).mean(1), looks(theirs).mean(1)
    error = np.sqrt((looks(ours).var(1) + looks(theirs).var(1)) / n)
    assert (np.abs(ours_mean - theirs_mean) < 4 * error).all(), (ours_mean, theirs_mean, error)
    np.testing.assert_allclose(looks(ours).std(1), looks(theirs).std(1), rtol=0.08)
    left, top, w, h = ours.T
    assert (
        (left >= 0).all()
        and (top >= 0).all()
        and (left + w <= width).all()
        and (top + h <= height).all()
        and (w * h > 0).all()
    )
    assert (
        crop_box(width, height, config, 1, 2, 3)
        == tuple(ours[3])
        != crop_box(width, height, config, 1, 3, 3)
    )


@pytest.mark.parametrize(("width", "height"), [(1000, 10), (10, 1000), (1, 1), (3, 2)])
def test_where_no_crop_fits_it_is_the_centre(width: int, height: int) -> None:
    config = RandomResizedCrop(scale=[0.999, 1.0])
    transform = torchvision("transforms").RandomResizedCrop
    top, left, h, w = transform.get_params(
        torch.zeros(3, height, width), config.scale, config.ratio
    )
    assert crop_box(width, height, config, 0, 0, 0) == (left, top, w, h)


def test_large_sets_come_in_small_pieces(tmp_path: Path, digits: dict[str, Any]) -> None:
    data = load(ranks.make_run(tmp_path, ranks.config(), digits))
    on_the_device = Batches(data, ranks.config().train.data, sampling=sampling(), device=CPU)
    assert on_the_device.plan.steps_at_once == 51  # 512 samples, 10 a step
