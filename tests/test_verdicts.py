"""The verdict on an attempt: from evidence that is laid out here, and from faults that are really
made.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.runs.verdict import judge
from tests import ranks
from tests.cli import (
    BATCHYARD,
    ONE_RANK,
    PROJECT,
    SHORT,
    Shell,
    finish,
    outcome,
    processes_of,
    step_reached,
    wait_for,
)
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import Outcome, retries
from trainer.datasets.prepare import prepare

CLOSED = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer"
    " [127.0.0.1]:35555"
)
NCCL = "NCCL communicator was aborted on rank 0"
WATCHDOG = (
    "[Rank 0] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE,"
    " Timeout(ms)=600000) ran for"
)
TABLE = """
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
============================================================
trainer FAILED
------------------------------------------------------------
Failures:
[1]:
  time      : 2026-11-25_03:29:49
  host      : localhost
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 7859)  (SIGTERM)
  error_file: <N/A>
  traceback : Signal 15 (SIGTERM) received by PID 7859
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-25_03:29:49
  host      : localhost
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 7860)
  error_file: <N/A>
============================================================
"""


class Scene:
    """An attempt's directory, with the evidence that a test puts there."""

    def __init__(
        self, folder: Path, world_size: int = 2, attempt: str = "local-1", nodes: int = 1
    ) -> None:
        self.run = RunDir(folder / "x-00000000")
        self.attempt = self.run.attempt(attempt)
        write_json(self.attempt.record, {"world_size": world_size, "nodes": nodes, "host": "n1"})

    def rank(self, rank: int, kind: str, message: str = "", at: float = 10.0, **more: Any) -> None:
        write_json(
            self.attempt.rank_evidence(rank),
            {"rank": rank, "time": at, "type": kind, "message": message, **more},
        )

    def node(self, log: str = "", number: int = 0, **record: Any) -> None:
        write_json(
            self.attempt.node_record(number),
            {"exit_status": 1, "signal": None, "oom_kills": 0, **record},
        )
        self.attempt.node_log(number).write_text(log)

    def verdict(self) -> tuple[str, str, int | None]:
        found = judge(self.run, self.attempt)
        assert found.cause and "\n" not in found.cause and (found.hint or found.status == "stopped")
        return found.status, found.verdict, found.rank

    def cause(self) -> str:
        return judge(self.run, self.attempt).cause or ""


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("RuntimeError", CLOSED),
        ("RuntimeError", CLOSED.replace("closed by", "reset by")),
        ("DistBackendError", NCCL),
        ("RuntimeError", WATCHDOG),
        ("BrokenPipeError", "[Errno 32] Broken pipe"),
        ("ConnectionResetError", "[Errno 104]"),
        (
            "DistNetworkError",
            (
                "The client socket has timed out after 300000ms while trying to connect to (n1,"
                " 29400)."
            ),
        ),
        ("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Terminated. "),
        ("KeyboardInterrupt", ""),
    ],
)
def test_a_lost_peer_is_never_the_cause_whichever_came_first(
    scene: Scene, kind: str, message: str
) -> None:
    scene.rank(0, kind, message, at=1.0)
    scene.rank(1, "ValueError", "a bug", at=2.0)
    assert scene.verdict() == ("failed", "user_error", 1)
    assert scene.cause() == "ValueError: a bug"


def test_the_first_of_two_own_errors_and_who_else_had_it(scene: Scene) -> None:
    scene.rank(0, "KeyError", "'x'", at=3.0)
    scene.rank(1, "KeyError", "'x'", at=2.0, where="trainer/models/resnet.py:7 in forward")
    assert (
        scene.verdict() == ("failed", "user_error", 1)
        and scene.cause() == "KeyError: 'x' (rank 0 too)"
    )
    assert judge(scene.run, scene.attempt).extra == {
        "where": "trainer/models/resnet.py:7 in forward"
    }


@pytest.mark.parametrize(
    ("kind", "message", "verdict"),
    [
        ("NoGPU", "local rank 0 was promised a GPU and sees 0", "infrastructure"),
        ("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", "oom_gpu"),
        (
            "DistBackendError",
            "NCCL error: unhandled cuda error. Last error: Cuda failure 2 'out of memory'",
            "oom_gpu",
        ),
        ("_ArrayMemoryError", "Unable to allocate 7 TiB", "oom_host"),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory",
            "oom_host",
        ),
        ("RuntimeError", "DataLoader worker (pid 9) is killed by signal: Killed. ", "oom_host"),
        ("RuntimeError", "DataLoader worker (pid 9) is killed by signal: Bus error. ", "oom_host"),
        ("OSError", "[Errno 28] No space left on device: '/runs/x'", "infrastructure"),
        ("OSError", "[Errno 5] Input/output error", "infrastructure"),
        (
            "DistNetworkError",
            "The server socket has failed to listen: EADDRINUSE, Address already in use",
            "infrastructure",
        ),
        ("AcceleratorError", "CUDA error: uncorrectable ECC error encountered", "infrastructure"),
        ("ValueError", "step-3.local-1 was written with another data_sha256: a, now b", "data"),
        ("AcceleratorError", "CUDA error: device-side assert triggered", "user_error"),
    ],
)
def test_what_a_message_means(scene: Scene, kind: str, message: str, verdict: str) -> None:
    scene.rank(
        1, kind, message, kinds=[kind, "MemoryError"] if kind == "_ArrayMemoryError" else [kind]
    )
    scene.rank(0, "RuntimeError", CLOSED, at=1.0)
    assert scene.verdict() == ("failed", verdict, 1)


def test_an_os_error_is_about_data_where_data_is_read(scene: Scene) -> None:
    scene.rank(
        0,
        "UnidentifiedImageError",
        "cannot identify image file",
        kinds=["UnidentifiedImageError", "OSError"],
        phase="data",
    )
    assert scene.verdict() == ("failed", "data", 0)
    scene.rank(
        0,
        "FileNotFoundError",
        "metrics.jsonl is gone",
        kinds=["FileNotFoundError", "OSError"],
        phase="logging",
    )
    assert scene.verdict() == ("failed", "user_error", 0)


def test_the_rank_without_a_word_is_guilty_where_others_lost_it(tmp_path: Path) -> None:
    scene = Scene(tmp_path, world_size=4, nodes=2)
    for rank in (0, 1, 3):
        scene.rank(rank, "RuntimeError", CLOSED)
    write_json(
        scene.attempt.rank_heartbeat(2), {"step": 7, "time": 5.0, "since": 5.0, "host": "n2"}
    )
    scene.node()
    assert scene.verdict() == ("failed", "infrastructure", 2)
    assert scene.cause() == "vanished from n2 without a word, and the others lost it"
    assert judge(scene.run, scene.attempt).global_step == 7


@pytest.mark.parametrize(
    ("code", "oom_kills", "verdict", "words"),
    [
        (-9, 0, "killed", "SIGKILL"),
        (-9, 1, "oom_host", "memory"),
        (-11, 0, "user_error", "native code (SIGSEGV)"),
        (-7, 0, "oom_host", "SIGBUS"),
        (3, 0, "user_error", "status 3"),
        (-15, 0, "killed", "SIGTERM"),
    ],
)
def test_torchruns_table_names_the_rank_that_died(
    scene: Scene, code: int, oom_kills: int, verdict: str, words: str
) -> None:
    scene.node(TABLE.replace("{code}", str(code)), oom_kills=oom_kills)
    assert scene.verdict() == ("failed", verdict, 1) and words in scene.cause()
    scene.rank(0, "RuntimeError", CLOSED)
    assert scene.verdict() == ("failed", verdict, 1)
    scene.rank(0, "ValueError", "its own")
    assert scene.verdict() == ("failed", "user_error", 0)


def test_the_table_of_another_node_counts_too(tmp_path: Path) -> None:
    scene = Scene(tmp_path, world_size=2, nodes=2)
    scene.node(TABLE.replace("rank      : 1", "rank      : 5").replace("{code}", "1"))
    scene.rank(0, "RuntimeError", CLOSED)
    scene.node(
        TABLE.replace("rank      : 0", "rank      : 9").replace("{code}", "-9"),
        number=1,
        oom_kills=2,
    )
    assert scene.verdict() == ("failed", "oom_host", 1)


def test_all_lost_each_other(scene: Scene) -> None:
    for rank in (0, 1):
        scene.rank(rank, "RuntimeError", CLOSED)
    assert scene.verdict() == ("failed", "infrastructure", 0)
    for rank in (0, 1):
        scene.rank(rank, "DistBackendError", WATCHDOG)
    assert scene.verdict() == ("failed", "hang", 0)


def test_an_error_that_the_disk_did_not_take_stands_in_the_log(scene: Scene) -> None:
    scene.rank(0, "RuntimeError", CLOSED, at=1.0)
    scene.attempt.rank_log(1).write_text(
        'Traceback (most recent call last):\n  File "x"\n[rank1]: OSError: [Errno 30] Read-only '
        "file system: '/runs'\n"
    )
    assert scene.verdict() == ("failed", "infrastructure", 1)


def test_a_trainer_that_does_not_import(scene: Scene) -> None:
    scene.node(
        'Traceback (most recent call last):\n  File "trainer/train.py", line 3\nSyntaxError:'
        " invalid syntax\n"
        + TABLE.replace("{code}", "1").replace("Root", "Traceback\nx.ChildFailedError: \nRoot")
    )
    assert (
        scene.verdict() == ("failed", "user_error", 1)
        and scene.cause() == "SyntaxError: invalid syntax"
    )


@pytest.mark.parametrize(
    ("log", "record", "words"),
    [
        ("", {"signal": 15}, "SIGTERM before the first step"),
        ("", {"signal": 12}, "SIGUSR2 before the first step"),
        (
            "torch...SignalException: Process 7 got signal: 15",
            {},
            "SIGTERM to torchrun before the first step",
        ),
    ],
)
def test_asked_to_stop_before_there_was_a_checkpoint(
    scene: Scene, log: str, record: dict[str, int], words: str
) -> None:
    scene.node(log, **record)
    scene.rank(1, "RuntimeError", CLOSED)
    assert scene.verdict() == ("stopped", "preempted", None) and words in scene.cause()
    # its checkpoint could not be written: that is no clean stop
    scene.rank(1, "OSError", "[Errno 28] No space left on device")
    assert scene.verdict() == ("failed", "infrastructure", 1)


def test_a_loader_worker_that_was_killed(scene: Scene) -> None:
    scene.rank(
        1,
        "RuntimeError",
        "a DataLoader worker was killed by SIGKILL: often too little memory",
        phase="data",
    )
    assert scene.verdict() == ("failed", "killed", 1)
    scene.node(oom_kills=1)
    assert scene.verdict() == ("failed", "oom_host", 1)
    scene.rank(
        1,
        "RuntimeError",
        "a DataLoader worker was killed by SIGBUS: often too little memory",
        phase="data",
    )
    assert scene.verdict() == ("failed", "oom_host", 1)


def test_a_launcher_that_ended_and_could_not_write(scene: Scene) -> None:
    assert "it was killed, or the machine went down" in scene.cause()
    found = judge(scene.run, scene.attempt, 1)
    assert (
        found.cause == "launch.node on n1 ended with status 1 and left no word: it could not write"
    )


@pytest.mark.parametrize(
    ("words", "verdict"),
    [
        (
            (
                "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks"
                " have been OOM Killed."
            ),
            "oom_host",
        ),
        (
            (
                "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T03:00:00 DUE TO TIME"
                " LIMIT ***"
            ),
            "timeout",
        ),
        (
            (
                "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T03:00:00 DUE TO"
                " PREEMPTION ***"
            ),
            "preempted",
        ),
        (
            (
                "slurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-11-25T03:00:00 DUE TO NODE"
                " FAILURE ***"
            ),
            "infrastructure",
        ),
        ("", "killed"),
    ],
)
def test_a_dead_launcher_has_slurms_word(tmp_path: Path, words: str, verdict: str) -> None:
    scene = Scene(tmp_path, attempt="slurm-7.0")
    scene.run.slurm.mkdir()
    (scene.run.slurm / "7_0_log.out").write_text(f"{words}\n")
    (scene.run.slurm / "77_0_log.out").write_text("DUE TO TIME LIMIT of another job\n")
    assert scene.verdict()[1] == verdict


@pytest.mark.parametrize(
    ("zero", "one", "guilty"),
    [
        ({"collective": True}, {"collective": False}, 1),
        ({"collective": False}, {"collective": True}, 0),
        ({"collective": True, "step": 5}, {"collective": True, "step": 4}, 1),
        ({"collective": True}, None, 1),
        ({"collective": True, "step": 5}, {"collective": True, "step": 5}, None),
    ],
)
def test_a_hang_has_one_rank_that_the_others_wait_for(
    scene: Scene, zero: Any, one: Any, guilty: int | None
) -> None:
    for rank, place in ((0, zero), (1, one)):
        if place is not None:
            scene.rank(
                rank,
                "Hang",
                "no progress for 600 s",
                phase="step",
                where="trainer/train.py:1 in gradients",
                **place,
            )
    assert scene.verdict() == ("failed", "hang", guilty)
    assert ("rank 0 waits for it" in scene.cause()) == (guilty == 1)


def test_retries_are_a_budget_by_verdict() -> None:
    assert retries("preempted", ["preempted"] * 50) and retries("timeout", ["timeout"] * 50)
    assert retries("infrastructure", ["preempted", "infrastructure", "infrastructure"])
    assert not retries("infrastructure", ["infrastructure"] * 3)
    assert retries("killed", []) and not retries("killed", ["killed"])
    for verdict in ("user_error", "nan", "data", "oom_gpu", "oom_host", "cancelled", "completed"):
        assert not retries(verdict, [])


# --- faults that are really made, on ranks without the launcher


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


def attempt_of(run: RunDir, world_size: int) -> Attempt:
    write_json(run.attempt("local-1").record, {"world_size": world_size, "nodes": 1, "host": "n1"})
    return run.attempt("local-1")


def test_an_exception_in_one_rank_of_two(
    tmp_path: Path, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(ranks=2), prepared)
    monkeypatch.setenv("BATCHYARD_FAULT", "exception:1:7")
    assert ranks.train(run, "local-1", 2) != 0
    found = judge(run, attempt_of(run, 2))
    assert (found.status, found.verdict, found.rank, found.global_step) == (
        "failed",
        "user_error",
        1,
        7,
    ), ranks.logs(run)
    assert found.cause == "RuntimeError: BATCHYARD_FAULT=exception:1:7" and "rank-1.log" in (
        found.hint or ""
    )
    assert found.extra["where"].startswith("trainer/ranks/faults.py:")


def test_nan_in_one_rank_is_found_by_all(
    tmp_path: Path, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ranks.make_run(
        tmp_path, ranks.config(ranks=2, execution={"stop_after_step": 9}), prepared
    )
    monkeypatch.setenv("BATCHYARD_FAULT", "nan:1:7")
    assert ranks.train(run, "local-1", 2) == 0, ranks.logs(run)
    found = Outcome.read(run.attempt("local-1").outcome)
    assert found and (found.status, found.verdict, found.global_step) == ("failed", "nan", 8)
    assert not list(run.checkpoints.glob("step-*"))


def test_a_hang_of_one_rank_leaves_all_stacks(
    tmp_path: Path, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # a start takes seconds, too
    run = ranks.make_run(tmp_path, ranks.config(ranks=2, execution={"hang_limit_s": 8}), prepared)
    monkeypatch.setenv("BATCHYARD_FAULT", "hang:1:7")
    assert ranks.train(run, "local-1", 2) != 0
    attempt = attempt_of(run, 2)
    found = judge(run, attempt)
    assert (found.status, found.verdict, found.rank, found.global_step) == (
        "failed",
        "hang",
        1,
        7,
    ), ranks.logs(run)
    assert "rank 0 waits for it" in (found.cause or "") and "in inject_fault" in (found.cause or "")
    assert (
        str(attempt.rank_stack(1)) in (found.hint or "")
        and "in inject_fault" in attempt.rank_stack(1).read_text()
    )
    assert "backward" in attempt.rank_stack(0).read_text()


def start_rank(run: RunDir, *prefix: str) -> subprocess.Popen[bytes]:
    env = {**os.environ, "BATCHYARD_ATTEMPT": "local-1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", "trainer", str(run.config)],
        env=env,
        stdin=subprocess.DEVNULL,
    )


def test_the_gap_of_a_suspended_run_does_not_count(
    tmp_path: Path, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 5.0
    run = ranks.make_run(tmp_path, ranks.config(execution={"hang_limit_s": limit}), prepared)
    monkeypatch.setenv("BATCHYARD_FAULT", "hang:0:7")
    (rank,) = ranks.begin(run, "local-1", 1)
    assert rank.pid
    try:
        heartbeat = run.attempt("local-1").rank_heartbeat(0)
        wait_for("step 7", lambda: (read_json(heartbeat) or {}).get("step") == 7)
        os.kill(rank.pid, signal.SIGSTOP)
        stopped = time.monotonic()
        wait_for("a gap longer than the limit", lambda: time.monotonic() > stopped + limit + 1)
        os.kill(rank.pid, signal.SIGCONT)
        rank.join(120)
        assert rank.exitcode, ranks.logs(run)
    finally:
        rank.kill()
    found = judge(run, attempt_of(run, 1))
    assert (found.verdict, found.rank, found.global_step) == ("hang", 0, 7), ranks.logs(run)
    counted = int(re.findall(r"no progress for (\d+) s", found.cause or "")[0])
    assert counted <= 1.2 * limit  # one tick, a tenth of the limit, over it, and two for the gap


def test_the_time_limit_is_known_and_kept(
    tmp_path: Path, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(), prepared)
    monkeypatch.setenv("BATCHYARD_DEADLINE", str(time.time() + 1))
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    found = Outcome.read(run.attempt("local-1").outcome)
    assert found and (found.status, found.verdict, found.global_step) == ("stopped", "timeout", 1)
    assert (run.checkpoints / "step-1.local-1").is_dir()


def test_a_missing_data_file(tmp_path: Path, prepared: dict[str, Any]) -> None:
    cut = tmp_path / "data"
    cut.mkdir()
    for file in Path(prepared["path"]).iterdir():
        if file.name != "train-labels.npy":
            (cut / file.name).symlink_to(file)
    run = ranks.make_run(tmp_path, ranks.config(), {**prepared, "path": str(cut)})
    assert ranks.train(run, "local-1", 1) != 0
    found = judge(run, attempt_of(run, 1))
    assert (found.verdict, found.rank) == ("data", 0) and "train-labels.npy is missing" in (
        found.cause or ""
    ), ranks.logs(run)


def test_memory_that_the_system_refuses(tmp_path: Path, prepared: dict[str, Any]) -> None:
    huge = {"name": "resnet", "width": 100_000, "blocks": [1]}  # a convolution of 360 GB
    run = ranks.make_run(tmp_path, ranks.config(model=huge), prepared)
    assert start_rank(run, "prlimit", f"--as={40 << 30}").wait(120) != 0
    found = judge(run, attempt_of(run, 1))
    assert (found.verdict, found.rank) == ("oom_host", 0), ranks.logs(run)
    assert "mem_gb" in (found.hint or "")


def test_term_twice_to_one_rank_of_two_stops_both_after_a_checkpoint(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(ranks=2, epochs=60), prepared)
    both = ranks.begin(run, "local-1", 2)
    try:
        wait_for("step 8", step_reached(run, 8))
        both[1].terminate()
        both[1].terminate()
        for rank in both:
            rank.join(120)
        assert [rank.exitcode for rank in both] == [0, 0], ranks.logs(run)
    finally:
        for rank in both:
            rank.kill()
    found = Outcome.read(run.attempt("local-1").outcome)
    assert found and (found.status, found.verdict) == ("stopped", "preempted")
    assert (run.checkpoints / "latest").resolve().name == f"step-{found.global_step}.local-1"


# --- faults that are really made, under a submit


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def shell(tmp_path: Path, cache: str) -> Shell:
    return Shell(tmp_path / "runs", env=(("XDG_CACHE_HOME", cache),))


def begin(shell: Shell, *options: str) -> tuple[subprocess.Popen[str], RunDir]:
    process = shell.start("submit", "digits", *SHORT, *ONE_RANK, *options)
    wait_for(
        "a run directory",
        lambda: process.poll() is not None or list(shell.runs.glob("*/config.json")),
    )
    return process, shell.only_run()


def process_with(run: RunDir, word: str) -> int | None:
    return next((int(line.split()[0]) for line in processes_of(run) if word in line), None)


def why(shell: Shell) -> str:
    printed = shell.run("why", "digits")
    assert 1 <= len(printed.splitlines()) <= 5, printed
    return printed


@pytest.mark.parametrize("whom", ["launch.node", "torch.distributed.run"])
def test_term_during_start_up_is_a_stop(shell: Shell, whom: str) -> None:
    process, run = begin(shell)
    ranks_of = f"-m trainer {run.config}"  # in torchrun's line, too
    wait_for(
        "the rank",
        lambda: any(ranks_of in x and "torch.distributed" not in x for x in processes_of(run)),
    )
    pid = process_with(run, whom)
    assert pid
    os.kill(pid, signal.SIGTERM)
    finish(process, code=75)
    found = outcome(run)
    assert (found.status, found.verdict) == ("stopped", "preempted") and "SIGTERM" in (
        found.cause or ""
    )
    assert "there is no checkpoint yet" in why(shell)


def test_a_killed_launch_node(shell: Shell) -> None:
    process, run = begin(shell, "--set", "execution.checkpoint_every_steps=5")
    wait_for("step 10", step_reached(run, 10))
    # it is written behind the steps
    wait_for("a whole checkpoint", (run.checkpoints / "latest").exists)
    pid = process_with(run, "launch.node")
    assert pid
    os.kill(pid, signal.SIGKILL)
    finish(process, code=1)
    found = outcome(run)
    assert (found.status, found.verdict) == (
        "failed",
        "killed",
    ) and found.cause == "launch.node was killed by SIGKILL"
    assert (
        found.global_step
        and found.global_step >= 10
        and "continues from the checkpoint of step" in why(shell)
    )


@pytest.fixture
def memory_group() -> Iterator[Path]:
    """A cgroup of 1 GB; skipped where this machine lets nobody make one."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    one = next((path for _, controllers, path in lines if "memory" in controllers.split(",")), None)
    parent = Path(f"/sys/fs/cgroup/memory{one}") if one else Path("/sys/fs/cgroup")
    group = parent / f"batchyard-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(1 << 30))
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(f"no memory cgroup: {error}")
    yield group
    wait_for("an empty cgroup", lambda: not (group / "cgroup.procs").read_text())
    group.rmdir()


def test_a_rank_that_the_kernel_killed_for_its_memory(shell: Shell, memory_group: Path) -> None:
    argv = [
        *BATCHYARD,
        "submit",
        "--runs-dir",
        str(shell.runs),
        "digits",
        *SHORT,
        *ONE_RANK,
        "--set",
        "train.model.width=512",
    ]
    inside = ["sh", "-c", f'echo $$ > {memory_group}/cgroup.procs; exec "$@"', "sh", *argv]
    process = subprocess.Popen(
        inside,
        cwd=PROJECT,
        env={**os.environ, **dict(shell.env)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    finish(process, code=1)
    found = outcome(shell.only_run())
    assert (found.status, found.verdict, found.rank) == ("failed", "oom_host", 0)
    assert "mem_gb" in why(shell)


def test_a_data_file_cut_short_under_the_run(tmp_path: Path) -> None:
    # a cache of its own: it is spoilt
    shell = Shell(tmp_path / "runs", env=(("XDG_CACHE_HOME", str(tmp_path / "cache")),))
    process, run = begin(shell, "--set", "train.epochs=200")
    wait_for("step 10", step_reached(run, 10))
    os.truncate(Path(json.loads(run.data_record.read_text())["path"]) / "train-images.npy", 4096)
    finish(process, code=1)
    found = outcome(run)
    assert (found.status, found.verdict, found.rank) == ("failed", "data", 0)
    # faulthandler's stack
    assert "trainer/batches/batches.py" in run.attempt("local-1").rank_log(0).read_text()
    assert "SIGBUS" in why(shell)


@pytest.mark.long
def test_a_disk_that_is_full_to_the_end_is_the_cause(shell: Shell) -> None:
    shell.runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", shell.runs], check=True)
    try:
        process, run = begin(shell, "--set", "execution.checkpoint_every_steps=20")
        wait_for("step 25", step_reached(run, 25))
        with (shell.runs / "others").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass
        printed = finish(process, code=1)
        assert "failed (infrastructure)" in printed and "No space left on device" in printed
        (shell.runs / "others").unlink()
        assert "failed (infrastructure)" in why(shell)
        assert "completed" in shell.run(
            "submit", "digits", *SHORT, *ONE_RANK, "--set", "execution.checkpoint_every_steps=20"
        )
    finally:
        subprocess.run(["umount", "-l", shell.runs], check=True)


@pytest.mark.long
def test_a_run_directory_that_becomes_read_only(shell: Shell) -> None:
    settings = ("--set", "execution.checkpoint_every_steps=200", "--set", "train.epochs=40")
    process, run = begin(shell, *settings)
    wait_for("step 10", step_reached(run, 10))
    subprocess.run(["mount", "--bind", run.path, run.path], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", run.path], check=True)
        printed = finish(process, code=1)
        assert (
            "failed (infrastructure)" in printed
            and "Traceback" not in printed.split("failed (infrastructure)")[-1]
        )
        assert "Read-only file system" in why(shell) and not run.outcome.exists()
        again = shell.run("submit", "digits", *SHORT, *ONE_RANK, *settings, code=2)
        assert (
            f"{run.path} cannot be written (Read-only file system)" in again
            and "Traceback" not in again
        )
    finally:
        subprocess.run(["umount", "-l", run.path], check=True)
