"""Checkpoints: written in the background, never half, on disks that are full or read-only, through
kills at every point.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.cli import wait_for
from trainer.checkpoints import files
from trainer.checkpoints import writer as checkpoint_writer
from trainer.checkpoints.files import NewerCheckpoint, load_newest, tidy
from trainer.checkpoints.writer import HashedFile, Writer
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome, retries
from trainer.ranks import watchdog

MB = 1_000_000


def state(step: int, size_mb: float = 0.1) -> dict[str, Any]:
    """What `Writer.save` takes; every number in it tells the step."""
    weights = {
        "layer.weight": torch.full((int(size_mb * MB / 8),), float(step)),
        "layer.steps": torch.tensor(step),
    }
    groups = [{"betas": (0.9, step), "params": [0]}]
    optimizer = {
        "state": {0: {"momentum_buffer": weights["layer.weight"] + 0.5}},
        "param_groups": groups,
    }
    trainer = {
        "optimizer": optimizer,
        "sums": [torch.full((3,), float(step), dtype=torch.float64)],
        "test_accuracy": None,
    }
    return {"weights": weights, "trainer": trainer, "manifest": {"metrics_bytes": 0}}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return (
            torch.equal(found, expected)
            and found.dtype == expected.dtype
            and found.stride() == expected.stride()
        )
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            same(found[k], v) for k, v in expected.items()
        )
    if isinstance(expected, list | tuple):
        return type(found) is type(expected) and all(
            same(a, b) for a, b in zip(found, expected, strict=True)
        )
    return bool(found == expected)


def saved(run: RunDir, *steps: int, size_mb: float = 0.1, best: tuple[int, ...] = ()) -> Writer:
    writer = Writer(run, run.attempt("local-1"))
    for step in steps:
        writer.save(step, **state(step, size_mb), best=step in best)
    writer.wait()
    return writer


def names(run: RunDir) -> list[str]:
    return sorted(p.name for p in run.checkpoints.iterdir())


def newest(run: RunDir) -> str | None:
    """The name of what would be continued from; its content is what was saved under that step."""
    found, _ = load_newest(run)
    if found is None:
        return None
    step = found.manifest["global_step"]
    size_mb = found.weights["layer.weight"].nbytes * 2 / MB
    assert same(found.weights, state(step, size_mb)["weights"]) and same(
        found.trainer, state(step, size_mb)["trainer"]
    )
    return found.path.name


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "t-00000000")
    run.path.mkdir()
    return run


# Writing


def test_what_is_saved_is_loaded_and_the_manifest_tells_of_it(run: RunDir) -> None:
    writer = saved(run, 7)
    found, complaints = load_newest(run)
    assert found is not None and complaints == [] and writer.problem is None
    assert same(found.weights, state(7)["weights"]) and same(found.trainer, state(7)["trainer"])
    assert found.path.name == os.readlink(run.checkpoints / "latest") == "step-7.local-1"
    manifest = read_json(found.path / "manifest.json")
    assert (manifest["schema"], manifest["global_step"], manifest["attempt"], manifest["best"]) == (
        1,
        7,
        "local-1",
        False,
    )
    assert sorted(manifest["files"]) == ["trainer.pt", "weights.pt"]
    on_disk = sum(p.stat().st_size for p in found.path.iterdir())
    assert 0 <= on_disk - files.size_bytes([state(7)["weights"], state(7)["trainer"]]) < 10_000
    assert (
        writer.last_save_s is not None
        and writer.last_stall_s is not None
        and writer.last_save_s > writer.last_stall_s
    )
    torch.load(found.path / "weights.pt", weights_only=True)


def test_strides_of_channels_last_and_views_of_a_larger_storage(run: RunDir) -> None:
    large = torch.randn(1_000_000)
    weights = {
        "conv": torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        "view": large[:10],
    }
    writer = Writer(run, run.attempt("local-1"))
    writer.save(1, weights=weights, trainer={}, manifest={})
    writer.wait()
    found, _ = load_newest(run)
    assert found is not None and same(found.weights, weights)
    assert (found.path / "weights.pt").stat().st_size < 10_000


def test_the_state_may_change_as_soon_as_save_returns(run: RunDir) -> None:
    writer = Writer(run, run.attempt("local-1"))
    content = state(1, size_mb=50)
    writer.save(1, **content)
    content["weights"]["layer.weight"].fill_(-1.0)
    content["trainer"]["optimizer"]["state"][0]["momentum_buffer"].fill_(-1.0)
    # the background has tens of MB to hash and to bring to the disk
    assert not (run.checkpoints / "step-1.local-1").exists()
    writer.wait()
    assert newest(run) == "step-1.local-1"


def test_one_in_flight_its_buffers_used_again(run: RunDir) -> None:
    writer = saved(run, 1, size_mb=20)
    buffers = {place: buffer.data_ptr() for place, buffer in writer._copies._buffers.items()}
    for step in (2, 3, 4):  # without a wait, each would overwrite what is being written
        writer.save(step, **state(step, size_mb=20))
    writer.wait()
    assert {
        place: buffer.data_ptr() for place, buffer in writer._copies._buffers.items()
    } == buffers and len(buffers) == 4
    assert newest(run) == "step-4.local-1"
    shutil.rmtree(run.checkpoints / "step-4.local-1")
    assert newest(run) == "step-3.local-1"


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no priority of their own")
def test_the_thread_yields_to_the_step(run: RunDir) -> None:
    writer = Writer(run, run.attempt("local-1"))
    writer.save(1, **state(1, size_mb=50))
    thread = writer._thread
    assert thread is not None and thread.native_id is not None
    own = os.getpriority(os.PRIO_PROCESS, 0)
    lower = min(own + 10, 19)
    wait_for(
        "a lower priority",
        lambda: (
            not thread.is_alive() or os.getpriority(os.PRIO_PROCESS, thread.native_id or 0) == lower
        ),
    )
    assert thread.is_alive() and os.getpriority(os.PRIO_PROCESS, 0) == own
    writer.wait()


def test_the_newest_two_and_the_best_are_kept(run: RunDir) -> None:
    writer = saved(run, 1, 2, 3, 4, best=(2,))
    assert names(run) == ["best", "latest", "step-2.local-1", "step-3.local-1", "step-4.local-1"]
    assert os.readlink(run.checkpoints / "best") == "step-2.local-1"
    writer.save(5, **state(5), best=True)
    writer.save(6, **state(6))
    writer.wait()
    assert names(run) == ["best", "latest", "step-5.local-1", "step-6.local-1"]
    assert files.find(run, "best")[0].path.name == "step-5.local-1"


def test_the_same_step_again_is_left_as_it_is(run: RunDir) -> None:
    saved(run, 3)
    before = (run.checkpoints / "step-3.local-1").stat().st_ino
    assert saved(run, 3).problem is None
    assert (run.checkpoints / "step-3.local-1").stat().st_ino == before and newest(
        run
    ) == "step-3.local-1"


def test_the_rows_of_metrics_are_on_the_disk_before_the_manifest(run: RunDir) -> None:
    writer = Writer(run, run.attempt("local-1"))
    run.metrics.write_text("a row\n")
    writer.save(1, **{**state(1), "manifest": {"metrics_bytes": 6}})
    writer.wait()
    assert writer.problem is None and newest(run) == "step-1.local-1"
    writer.save(2, **{**state(2), "manifest": {"metrics_bytes": 7}})
    writer.wait()
    assert "metrics.jsonl has 6 bytes, 7 were logged" in (writer.problem or "")
    assert newest(run) == "step-1.local-1" and names(run) == ["latest", "step-1.local-1"]


def test_what_is_no_fault_of_the_disk_is_raised(run: RunDir) -> None:
    writer = Writer(run, run.attempt("local-1"))
    writer.save(1, weights={}, trainer={"callback": lambda: None}, manifest={})
    with pytest.raises(AttributeError, match="lambda"):
        writer.wait()
    assert load_newest(run) == (None, [])


def test_what_reads_back_otherwise_than_written_is_not_published_and_nothing_older_goes(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = saved(run, 1, 2)
    # long enough to write, to spoil the file before it
    content = {**state(3), "trainer": state(3, size_mb=100)["trainer"]}
    writer.save(3, **content)
    temporary = run.checkpoints / "step-3.local-1.tmp"
    wait_for("the whole weights.pt", lambda: (temporary / "trainer.pt").exists())
    flip(temporary / "weights.pt", 0.5)
    writer.wait()
    (line,) = said(capsys)
    assert line.endswith("step 3: weights.pt has another sha256 than its manifest says")
    assert (
        names(run) == ["latest", "step-1.local-1", "step-2.local-1"]
        and newest(run) == "step-2.local-1"
    )


# Loading what was spoilt


def flip(path: Path, position: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def forget_weights(folder: Path) -> None:
    manifest = read_json(folder / "manifest.json")
    del manifest["files"]["weights.pt"]
    (folder / "manifest.json").write_text(
        json.dumps({**manifest, "sha256": files.manifest_sha256(manifest)})
    )


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda p: cut(p / "manifest.json"), "manifest.json is cut short or spoilt ("),
        (
            lambda p: os.truncate(p / "manifest.json", 0),
            "manifest.json is cut short or spoilt (0 bytes)",
        ),
        (lambda p: (p / "manifest.json").unlink(), "manifest.json is missing"),
        (lambda p: (p / "manifest.json").write_text("[]"), "manifest.json is no JSON object"),
        (
            lambda p: (p / "manifest.json").write_bytes(b"\xff" * 9),
            "manifest.json is cut short or spoilt (9 bytes)",
        ),
        (
            lambda p: change(p / "manifest.json", '"metrics_bytes": 0', '"metrics_bytes": 1'),
            "manifest.json has another sha256",
        ),
        (forget_weights, "manifest.json does not name weights.pt"),
        (lambda p: (p / "weights.pt").unlink(), "weights.pt is missing"),
        (lambda p: (p / "trainer.pt").unlink(), "trainer.pt is missing"),
        (
            lambda p: flip(p / "weights.pt", 0.5),
            "weights.pt has another sha256 than its manifest says",
        ),
        (
            lambda p: flip(p / "trainer.pt", 0.0),
            "trainer.pt has another sha256 than its manifest says",
        ),
        (lambda p: cut(p / "weights.pt"), "bytes, its manifest says"),
        (empty, "manifest.json is missing"),
    ],
)
def test_a_spoilt_checkpoint_is_named_moved_aside_and_the_one_before_taken(
    run: RunDir, spoil: Callable[[Path], object], complaint: str
) -> None:
    saved(run, 1, 2)
    # the same name may be bad twice
    for again, aside in enumerate(("bad-step-2.local-1", "bad2-step-2.local-1")):
        if again:
            saved(run, 2)
        spoil(run.checkpoints / "step-2.local-1")
        assert newest(run) == "step-1.local-1"
        found, complaints = load_newest(run)
        assert (
            len(complaints) == 1
            and complaints[0].startswith("step-2.local-1: ")
            and complaint in complaints[0]
        )
        lines = tidy(run, found, complaints)
        assert lines[0] == f"checkpoint passed over and moved aside as {aside}: {complaints[0]}"
        assert lines[1:] == ["latest pointed to step-2.local-1, now to step-1.local-1"]
        assert (run.checkpoints / aside).is_dir() and load_newest(run)[1] == []


def test_nothing_whole_and_nothing_at_all(run: RunDir) -> None:
    assert load_newest(run) == (None, []) and tidy(run, None, []) == []
    saved(run, 1)
    (run.checkpoints / "step-1.local-1/weights.pt").unlink()
    found, complaints = load_newest(run)
    assert found is None and complaints == ["step-1.local-1: weights.pt is missing"]
    assert tidy(run, None, complaints)[1] == "latest pointed to step-1.local-1, now to nothing"
    assert names(run) == ["bad-step-1.local-1"]


def test_a_newer_schema_is_refused_and_nothing_is_touched_an_unknown_key_is_not(
    run: RunDir,
) -> None:
    saved(run, 1, 2)
    path = run.checkpoints / "step-2.local-1/manifest.json"
    manifest = {**read_json(path), "a key of tomorrow": [1]}
    path.write_text(json.dumps({**manifest, "sha256": files.manifest_sha256(manifest)}))
    assert newest(run) == "step-2.local-1"
    path.write_text(json.dumps({**manifest, "schema": 2}))
    with pytest.raises(
        NewerCheckpoint,
        match=r"step-2\.local-1 was written by a newer Batchyard \(schema 2, this one reads up",
    ):
        load_newest(run)


def test_what_was_left_lying_is_no_checkpoint_and_goes(run: RunDir) -> None:
    saved(run, 1)
    (run.checkpoints / "step-9.local-1.tmp").mkdir()
    (run.checkpoints / "step-9.local-1.tmp" / "weights.pt").write_bytes(b"half")
    (run.checkpoints / "step-nine.local-1").mkdir()
    (run.checkpoints / "step-9.local-1").write_text("a file")
    assert newest(run) == "step-1.local-1"
    tidy(run, load_newest(run)[0], [])
    assert names(run) == ["latest", "step-1.local-1", "step-9.local-1", "step-nine.local-1"]


def test_links_that_dangle_or_lag_are_put_right(run: RunDir) -> None:
    saved(run, 1, 2, 3, 4, best=(1, 3))
    shutil.rmtree(run.checkpoints / "step-4.local-1")
    files.point(run.checkpoints / "best", run.checkpoints / "step-1.local-1")
    lines = tidy(run, load_newest(run)[0], [])
    assert lines == [
        "latest pointed to step-4.local-1, now to step-3.local-1",
        "best pointed to step-1.local-1, now to step-3.local-1",
    ]
    assert files.find(run, "best")[0].path.name == "step-3.local-1"
    shutil.rmtree(run.checkpoints / "step-3.local-1")
    with pytest.raises(
        files.NoCheckpoint,
        match=r"the best checkpoint of t-00000000, step-3\.local-1, is not whole",
    ):
        files.find(run, "best")


# Disks that take nothing


@pytest.fixture
def mount(run: RunDir) -> Iterator[Callable[..., None]]:
    """Mounts something at the run's checkpoints; needs root."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    run.checkpoints.mkdir()
    mounted = []

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments, str(run.checkpoints)], check=True)
        mounted.append("remount" not in " ".join(arguments))

    yield mount
    for _ in range(sum(mounted)):
        subprocess.run(["umount", str(run.checkpoints)], check=True)


def said(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [
        line for line in capsys.readouterr().out.splitlines() if "CHECKPOINT NOT WRITTEN" in line
    ]


def test_a_full_disk(
    run: RunDir, mount: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    mount("-t", "tmpfs", "-o", "size=8m", "tmpfs")
    writer = saved(run, 1, size_mb=4)
    for step in (2, 3):  # the second one is a periodic one within a minute
        writer.save(step, **state(step, size_mb=4))
        writer.wait()
    (line,) = said(capsys)
    assert line.startswith(
        "CHECKPOINT NOT WRITTEN, training goes on and tries again later: step 2: [Errno 28] No"
        " space left"
    )
    assert f"(4.0 MB are needed, 4.4 MB are free in {run.checkpoints}: 0.7 MB are missing)" in line
    assert writer.problem and writer.problem in line
    assert names(run) == ["latest", "step-1.local-1"] and newest(run) == "step-1.local-1"
    writer.save(4, **state(4, size_mb=4), last=True)
    writer.save(5, **state(5, size_mb=4), best=True)
    writer.wait()
    assert [line.split("later: ")[1][:6] for line in said(capsys)] == ["step 4", "step 5"]
    mount("-o", "remount,size=32m")
    writer.save(6, **state(6, size_mb=4), last=True)
    writer.wait()
    assert writer.problem is None and newest(run) == "step-6.local-1"
    assert "the checkpoint of step 6 is written, after 3 that were not" in capsys.readouterr().out


def test_no_inodes(
    run: RunDir, mount: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    # a checkpoint takes four, the links one each
    mount("-t", "tmpfs", "-o", "size=64m,nr_inodes=8", "tmpfs")
    saved(run, 1, 2)
    (line,) = said(capsys)
    assert "step 2: [Errno 28] No space left on device" in line and " inodes)" in line
    assert names(run) == ["latest", "step-1.local-1"] and newest(run) == "step-1.local-1"


def test_a_disk_that_stops_in_the_midst_of_a_file(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = saved(run, 1, size_mb=4)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB, before[1]))
    try:
        writer.save(2, **state(2, size_mb=4))
        writer.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (line,) = said(capsys)
    assert "step 2: [Errno 27] File too large" in line
    assert names(run) == ["latest", "step-1.local-1"] and newest(run) == "step-1.local-1"


def test_torch_never_sees_the_error_of_a_device_that_is_full() -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        file = HashedFile(full, lambda size: None)
        torch.save(state(1)["weights"], file)
    assert file.error is not None and file.error.errno == errno.ENOSPC


def test_a_read_only_directory(
    run: RunDir, mount: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    writer = saved(run, 1, 2)
    (run.checkpoints / "step-2.local-1/weights.pt").unlink()
    mount("--bind", str(run.checkpoints))
    mount("-o", "remount,ro,bind")
    writer.save(3, **state(3))
    writer.wait()
    (line,) = said(capsys)
    assert "step 3: [Errno 30] Read-only file system" in line
    found, complaints = load_newest(run)
    lines = tidy(run, found, complaints)
    assert (
        lines[0]
        == "checkpoint passed over, but not moved aside (Read-only file system): step-2.local-1:"
        " weights.pt is missing"
    )
    assert (
        lines[1].startswith(
            f"latest and best could not be put right in {run.checkpoints}: [Errno 30]"
        )
        and len(lines) == 2
    )
    mount("-o", "remount,rw,bind")
    writer.save(4, **state(4), last=True)
    writer.wait()
    assert writer.problem is None and newest(run) == "step-4.local-1"


@pytest.mark.skipif(
    shutil.which("mkfs.btrfs") is None, reason="a quota that holds for root too: btrfs-progs"
)
def test_a_quota(
    run: RunDir, mount: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = tmp_path / "btrfs.img"
    with image.open("wb") as file:
        file.truncate(128 * 2**20)
    subprocess.run(["mkfs.btrfs", "-q", "-f", str(image)], check=True)
    mount("-o", "loop", str(image))
    for words in (
        ["subvolume", "create", "runs"],
        ["quota", "enable", "."],
        ["qgroup", "limit", "6M", "runs"],
    ):
        subprocess.run(
            ["btrfs", *words], cwd=run.checkpoints, stdout=subprocess.DEVNULL, check=True
        )
    inner = RunDir(run.checkpoints / "runs" / "t-00000000")
    inner.path.mkdir()
    saved(inner, 1, 2, size_mb=4)
    (line,) = said(capsys)
    assert "step 2: [Errno 122] Disk quota exceeded (4.0 MB are needed, " in line and line.endswith(
        "; the quota allows less)"
    )
    assert names(inner) == ["latest", "step-1.local-1"] and newest(inner) == "step-1.local-1"


def test_an_outcome_without_its_checkpoint_says_so(run: RunDir) -> None:
    done = Outcome(
        "completed", "completed", "local-1", "t", weights_sha256="a", extra={"best": 1}
    ).without_checkpoint("full")
    assert (done.status, done.verdict, done.weights_sha256, done.exit_code) == (
        "failed",
        "infrastructure",
        None,
        1,
    )
    assert done.cause == "the last checkpoint could not be written: full" and done.hint
    assert done.extra == {"best": 1, "checkpoint_problem": "full"}
    stopped = Outcome(
        "stopped", "preempted", "local-1", "t", cause="asked to stop"
    ).without_checkpoint("full")
    assert (stopped.status, stopped.verdict) == ("stopped", "preempted")
    assert stopped.cause == "asked to stop; its checkpoint was not written: full"


def test_a_slow_write_that_is_waited_for_is_no_hang_and_one_that_stands_still_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "t-00000000")
    run.path.mkdir()
    monkeypatch.setattr(checkpoint_writer, "SIGN_S", 0.02)
    signs: list[int] = []
    monkeypatch.setattr(watchdog, "alive", lambda: signs.append(writer._written))
    writer = Writer(run, run.attempt("local-1"))

    def publish(content: Any, manifest: Any) -> None:
        wait_for("signs", lambda: writer._count(1) or len(signs) >= 3)  # bytes come
        before = len(signs)
        threading.Event().wait(0.5)  # and then none
        assert len(signs) <= before + 1

    monkeypatch.setattr(writer, "_publish", publish)
    writer.save(1, **state(1))
    writer.wait()
    assert len(signs) >= 3


def test_where_a_rank_is_that_waits_for_its_checkpoint() -> None:
    """The watchdog and `why` say so by the file's name."""
    assert any(
        "trainer/checkpoints/writer.py".startswith(start) and name == "checkpoint"
        for start, name in watchdog.PHASES.items()
    )


def test_a_stop_without_its_checkpoint_takes_from_the_budget_of_the_infrastructure() -> None:
    stopped = Outcome("stopped", "timeout", "slurm-7.0", "trainer rank 0", 8)
    assert (stopped.budget, stopped.without_checkpoint("full").budget) == (
        "timeout",
        "infrastructure",
    )
    assert retries("timeout", ["timeout"] * 9) and not retries(
        "infrastructure", ["infrastructure"] * 3
    )
