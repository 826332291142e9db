"""Checkpoints of whole runs: killed at every point and at any moment, on a full disk, exported."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests import ranks
from tests.cli import PROJECT, Shell, wait_for
from tests.test_checkpoint import newest, state
from trainer.checkpoints.files import load_newest, tidy, weights_sha256
from trainer.checkpoints.writer import Writer
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.datasets.prepare import prepare
from trainer.output.tracking import Rows

POINTS = ("weights", "trainer", "manifest", "rename", "latest", "prune")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, prepared: dict[str, Any]) -> RunDir:
    """A run that nothing disturbed: 30 steps, a checkpoint each 4."""
    run = ranks.make_run(
        tmp_path_factory.mktemp("whole"),
        ranks.config(execution={"checkpoint_every_steps": 4}),
        prepared,
    )
    assert attempt(run, 1) == 0
    return run


def attempt(run: RunDir, number: int, **environment: str) -> int:
    """One attempt on one rank, to its end; its exit status, negative for a signal."""
    return ranks.train(run, f"local-{number}", 1, **environment)


def outcome(run: RunDir, number: int) -> Outcome:
    found = Outcome.read(run.attempt(f"local-{number}").outcome)
    assert found is not None, ranks.logs(run)
    return found


def ended_like(run: RunDir, number: int, whole: RunDir) -> None:
    assert outcome(run, number).weights_sha256 == outcome(whole, 1).weights_sha256, ranks.logs(run)
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_killed_at_every_point_of_a_save_and_continued_to_the_same_bits(
    tmp_path: Path, prepared: dict[str, Any], whole: RunDir
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(execution={"checkpoint_every_steps": 4}), prepared)
    for number, point in enumerate(POINTS, start=1):
        step = 4 * number  # each attempt gets one checkpoint further
        assert attempt(run, number, BATCHYARD_FAULT=f"kill:{point}:{step}") == -signal.SIGKILL, (
            ranks.logs(run)
        )
        assert run.killed(point, step).exists()
        found, complaints = load_newest(run)
        assert complaints == [], "a kill left something that looks like a checkpoint"
        published = step if point in ("latest", "prune") else step - 4
        assert (found.manifest["global_step"] if found else 0) == published, point
        left = [p.name for p in run.checkpoints.glob("step-*.tmp")]
        half = {"latest": [], "prune": ["step-16.local-5.tmp"]}.get(
            point, [f"step-{step}.local-{number}.tmp"]
        )
        assert left == half, point  # prune: the old one, renamed and not yet removed
    assert attempt(run, 7) == 0
    ended_like(run, 7, whole)
    assert os.readlink(run.checkpoints / "latest") == "step-30.local-7"
    assert (
        not list(run.checkpoints.glob("*.tmp")) and len(list(run.checkpoints.glob("step-*"))) == 2
    )


def test_no_outcome_before_its_checkpoint_is_on_the_disk(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(execution={"stop_after_step": 2}), prepared)
    assert attempt(run, 1, BATCHYARD_FAULT="kill:rename:2") == -signal.SIGKILL, ranks.logs(run)
    assert not run.attempt("local-1").outcome.exists()


def save_for_ever(path: str, first: int) -> None:
    run = RunDir(Path(path))
    writer = Writer(run, run.attempt("local-1"))
    for step in range(first, 1_000_000):
        writer.save(step, **state(step, size_mb=1), best=step % 3 == 0)


def test_killed_at_any_moment_nothing_spoilt_is_ever_loaded(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "t-00000000")
    run.path.mkdir()
    moments = random.Random(0)
    reached = 0
    for _ in range(20):
        process = ranks.start(save_for_ever, str(run.path), reached + 1)
        wait_for("a new checkpoint", partial(lambda before: newest_step(run) > before, reached))
        # not a wait for anything: the kill may come at any moment
        end = time.monotonic() + moments.uniform(0, 0.05)
        while time.monotonic() < end:
            pass
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        found, complaints = load_newest(run)
        # each number in it is its step's
        assert complaints == [] and found is not None and newest(run) == found.path.name
        assert found.manifest["global_step"] > reached
        reached = found.manifest["global_step"]
        tidy(run, found, [])
        assert (run.checkpoints / "latest").resolve() == found.path and not list(
            run.checkpoints.glob("step-*.tmp")
        )
        best = run.checkpoints / "best"
        assert not best.is_symlink() or best.exists()


def newest_step(run: RunDir) -> int:
    return max(
        (
            int(p.name[5:].split(".")[0])
            for p in run.checkpoints.glob("step-*")
            if not p.name.endswith(".tmp")
        ),
        default=0,
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 8 MB that the tests fill."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path, leave: int) -> None:
    """Leaves so many bytes free, in pages."""
    (disk / "others").write_bytes(b"")
    found = os.statvfs(disk)
    (disk / "others").write_bytes(bytes(found.f_bavail * found.f_frsize - leave))


def is_full(disk: Path) -> bool:
    """Fills what is left, since the run itself frees and takes some."""
    with (disk / "others").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    return os.statvfs(disk).f_bavail == 0


def cpu_seconds(pid: int | None) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) / os.sysconf("SC_CLK_TCK")


def test_a_full_disk_stops_no_training_and_the_outcome_says_so(
    tmp_path: Path, prepared: dict[str, Any], whole: RunDir, small_disk: Path
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(execution={"stop_after_step": 10}), prepared)
    run.checkpoints.symlink_to(small_disk)
    assert attempt(run, 1) == 0
    fill(small_disk, leave=2**20)
    ranks.set_execution(run, stop_after_step=20, checkpoint_every_steps=4)
    assert attempt(run, 2) == 0
    stopped = outcome(run, 2)
    assert (stopped.status, stopped.verdict, stopped.global_step) == ("stopped", "preempted", 20)
    assert (
        stopped.cause
        and "asked to stop; its checkpoint was not written: step 20: [Errno 28]" in stopped.cause
    )
    assert stopped.extra["checkpoint_problem"].startswith(
        "step 20: [Errno 28] No space left on device"
    )
    log = run.attempt("local-2").rank_log(0).read_text()
    # the first periodic one, and the last; none of those between
    assert log.count("CHECKPOINT NOT WRITTEN") == 2
    ranks.set_execution(run, stop_after_step=None)
    assert attempt(run, 3) == 0
    lost = outcome(run, 3)
    assert (lost.status, lost.verdict, lost.weights_sha256) == ("failed", "infrastructure", None)
    assert lost.cause and lost.cause.startswith("the last checkpoint could not be written: step 30")
    found, complaints = load_newest(run)
    assert found is not None and complaints == [] and found.path.name == "step-10.local-1"
    (small_disk / "others").unlink()
    assert attempt(run, 4) == 0
    ended_like(run, 4, whole)


def test_a_run_whose_whole_directory_is_on_a_full_disk(
    tmp_path: Path, prepared: dict[str, Any], whole: RunDir, small_disk: Path
) -> None:
    """Its rows wait in memory, its log lines in the stream, until there is room again."""
    run = ranks.make_run(small_disk, ranks.config(epochs=400), prepared)
    (process,) = ranks.begin(run, "local-1", 1)
    wait_for("the first rows", lambda: run.metrics.exists() and run.metrics.stat().st_size > 0)
    wait_for("a full disk", lambda: is_full(small_disk))
    used = cpu_seconds(process.pid)
    wait_for(
        "training without room for a row",
        lambda: not process.is_alive() or cpu_seconds(process.pid) > used + 1,
    )
    assert process.is_alive(), ranks.logs(run)
    size = run.metrics.stat().st_size
    (small_disk / "others").unlink()
    wait_for("the rows that waited", lambda: run.metrics.stat().st_size > size + 4096)
    os.kill(process.pid or 0, signal.SIGTERM)
    process.join(60)
    assert process.exitcode == 0, ranks.logs(run)
    stopped = outcome(run, 1)
    assert stopped.status == "stopped" and "checkpoint_problem" not in stopped.extra
    rows = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    steps = [row["global_step"] for row in rows if row["kind"] == "train"]
    # of each epoch's 15; none is missing
    assert steps == [s for s in range(1, steps[-1] + 1) if s % 15 in (0, 4, 8, 12)]
    assert (
        "takes no more rows; they wait in memory" in run.attempt("local-1").rank_log(0).read_text()
    )


def test_rows_that_a_full_disk_cuts_in_two_are_written_whole_in_the_end(small_disk: Path) -> None:
    rows = Rows(small_disk / "metrics.jsonl")
    fill(small_disk, leave=4096)
    for step in range(100):
        rows.append({"global_step": step, "text": "x" * 100})
    assert rows.waiting and (small_disk / "metrics.jsonl").stat().st_size == 4096
    length = rows.length()
    (small_disk / "others").unlink()
    rows.append({"global_step": 100})
    assert (
        not rows.waiting and length < rows.length() == (small_disk / "metrics.jsonl").stat().st_size
    )
    assert [
        json.loads(line)["global_step"]
        for line in (small_disk / "metrics.jsonl").read_text().splitlines()
    ] == list(range(101))
    rows.close()


def test_half_a_json_file_does_not_stay_on_a_full_disk(small_disk: Path) -> None:
    write_json(small_disk / "outcome.json", {"old": 1})
    fill(small_disk, leave=8192)
    with pytest.raises(OSError, match="No space left"):
        write_json(small_disk / "outcome.json", ["x" * 100_000])
    assert (
        read_json(small_disk / "outcome.json") == {"old": 1}
        and len(list(small_disk.iterdir())) == 2
    )


@pytest.mark.long
def test_export_by_the_tool_and_by_the_verb(
    tmp_path: Path, prepared: dict[str, Any], whole: RunDir
) -> None:
    run = ranks.make_run(tmp_path / "runs", ranks.config(), prepared)
    run.checkpoints.symlink_to(whole.checkpoints)
    run.code.symlink_to(PROJECT)
    write_json(run.plan, {"python": sys.executable})
    tool = [
        sys.executable,
        "-m",
        "trainer.tools.export",
        str(run.config),
        "--out",
        str(tmp_path / "w.safetensors"),
    ]
    printed = json.loads(
        subprocess.run(tool, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    )
    found, _ = load_newest(run)
    assert found is not None
    weights = load_file(tmp_path / "w.safetensors")
    assert weights_sha256(weights) == printed["weights_sha256"] == outcome(whole, 1).weights_sha256
    assert {k: (v.shape, v.dtype) for k, v in weights.items()} == {
        k: (v.shape, v.dtype) for k, v in found.weights.items()
    }
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        facts = file.metadata()
    assert (facts["format"], facts["global_step"], facts["checkpoint"]) == (
        "pt",
        "30",
        "step-30.local-1",
    )
    assert printed["bytes"] == (tmp_path / "w.safetensors").stat().st_size and printed[
        "tensors"
    ] == len(weights)

    shell = Shell(tmp_path / "runs")
    line = shell.run("export", "t-00000000")
    assert (
        f"{run.path / 'latest.safetensors'}: {len(weights)} tensors" in line
        and "from step-30.local-1" in line
    )
    assert weights_sha256(load_file(run.path / "latest.safetensors")) == printed["weights_sha256"]
    # each time the same
    assert (run.path / "latest.safetensors").read_bytes() == (
        tmp_path / "w.safetensors"
    ).read_bytes()
    assert "t-00000000 has no best checkpoint: only a run with" in shell.run(
        "export", "t-00000000", "--best", code=2
    )
    assert "Is a directory" in shell.run("export", "t-00000000", "--out", str(tmp_path), code=2)
    write_json(run.plan, {"python": "/no/such/python"})
    printed = shell.run("export", "t-00000000", code=2)
    assert (
        "/no/such/python has no safetensors, which trainer.tools.export needs: install the extra 'train'"
        in printed
    )
