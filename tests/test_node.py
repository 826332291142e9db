"""What runs on a node, without a cluster: host lists, ports, signals, locks, and the verdict from
the evidence that is left.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.node import place
from launch.runs import array_listing
from launch.runs.verdict import conclude
from tests.cli import wait_for
from trainer.config.files import lock
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.lock import Lock
from trainer.config.files.outcome import Outcome

PROJECT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("nodelist", "hosts"),
    [
        ("n1", ["n1"]),
        ("n[1-3]", ["n1", "n2", "n3"]),
        ("n[1,3-4],login", ["n1", "n3", "n4", "login"]),
        ("gpu[07-10]", ["gpu07", "gpu08", "gpu09", "gpu10"]),
        ("a[1-2]b[3-4]", ["a1b3", "a1b4", "a2b3", "a2b4"]),
        ("rack-1-n[001,010].local", ["rack-1-n001.local", "rack-1-n010.local"]),
    ],
)
def test_host_lists(nodelist: str, hosts: list[str]) -> None:
    assert place.expand_hosts(nodelist) == hosts


def test_the_port_is_free_and_not_the_kernels() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    ports = {place.free_port(f"slurm-{job}.0") for job in range(300)}
    assert len(ports) > 250 and not any(low <= p <= high or p == 29500 or p < 15000 for p in ports)
    taken = place.free_port("slurm-7.0")
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken))
        other.listen()
        assert place.free_port("slurm-7.0") != taken
    assert place.free_port("slurm-7.0") == taken


def test_another_node_takes_the_port_that_the_first_has_found(tmp_path: Path) -> None:
    run = run_dir(
        tmp_path,
        ["sh", "-c", "echo {MASTER_ADDR} {MASTER_PORT} {NODE_RANK} > $0/said", f"{tmp_path}"],
    )
    fake(tmp_path / "bin", "squeue", "exit 0")
    task = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    argv = [sys.executable, "-m", "launch.node", str(run.path), "--slurm"]
    environment = {**os.environ, **task, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    second = subprocess.Popen(argv, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL)
    wait_for("its attempt", lambda: run.attempt("slurm-7.0").path.exists())
    # it waits for what the first decides
    assert second.poll() is None and not (tmp_path / "said").exists()
    write_json(run.attempt("slurm-7.0").record, {"attempt": "slurm-7.0", "master_port": 23456})
    wait_for(
        "the command",
        lambda: (tmp_path / "said").exists() and (tmp_path / "said").read_text().endswith("\n"),
    )
    assert (tmp_path / "said").read_text() == "n1 23456 1\n"
    Outcome("completed", "completed", "slurm-7.0", "test").write(run.outcome)
    assert second.wait(timeout=30) == 0


def test_another_node_that_is_stopped_before_the_first_begins_says_so(tmp_path: Path) -> None:
    run = run_dir(tmp_path, ["sh", "-c", "echo > $0/said", f"{tmp_path}"])
    task = {"SLURM_JOB_ID": "7", "SLURM_NODEID": "1", "SLURM_JOB_NODELIST": "n[1-2]"}
    argv = [sys.executable, "-m", "launch.node", str(run.path), "--slurm"]
    second = subprocess.Popen(
        argv,
        cwd=PROJECT,
        env={**os.environ, **task},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    wait_for("its attempt", lambda: run.attempt("slurm-7.0").path.exists())
    second.send_signal(signal.SIGUSR2)
    _, said = second.communicate(timeout=30)
    assert second.returncode == 0 and b"slurm-7.0 starts nothing on node 1: asked to stop" in said
    left = read_json(run.attempt("slurm-7.0").node_record(1))  # node 0 waits for it
    assert (left["exit_status"], left["signal"]) == (0, signal.SIGUSR2) and not (
        tmp_path / "said"
    ).exists()


def run_dir(tmp_path: Path, argv: list[str]) -> RunDir:
    run = RunDir(tmp_path / "x-00000000")
    run.code.mkdir(parents=True)
    write_json(
        run.plan,
        {
            "backend": "local",
            "argv": argv,
            "env": {"GIVEN": "{ATTEMPT}"},
            "nodes": 1,
            "nproc_per_node": 1,
        },
    )
    return run


def start(run: RunDir, attempt: str = "local-1") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "launch.node", str(run.path), "--attempt", attempt],
        cwd=PROJECT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def test_a_command_without_a_word_is_killed_and_its_last_line_told(tmp_path: Path) -> None:
    run = run_dir(tmp_path, ["sh", "-c", "echo about to fail; exit 7"])
    assert end(start(run)) == 1
    found = conclude(run, run.attempt("local-1"))
    assert (found.status, found.verdict) == ("failed", "killed")
    assert found.cause == "no rank left a word (exit status 7): about to fail"


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    run = run_dir(tmp_path, ["/no/such/python", "-m", "trainer"])
    assert end(start(run)) == 1
    assert "No such file or directory" in (conclude(run, run.attempt("local-1")).cause or "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP])
def test_every_signal_becomes_one_term_and_a_stop(tmp_path: Path, number: signal.Signals) -> None:
    script = (
        "trap 'echo TERM >> seen; exit 3' TERM; echo ready > ready; while :; do sleep 0.05; done"
    )
    run = run_dir(tmp_path, ["sh", "-c", script])
    process = start(run)
    deadline = time.monotonic() + 30
    while not (run.path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.send_signal(number)
    assert end(process) == 75
    assert (run.path / "seen").read_text() == "TERM\n"
    found = conclude(run, run.attempt("local-1"))
    assert (found.status, found.verdict) == ("stopped", "preempted")
    assert not run.lock.exists()


@pytest.mark.parametrize(
    ("kind", "verdict"),
    [
        ("RuntimeError", "user_error"),
        ("NoGPU", "infrastructure"),
        ("OutOfMemoryError", "oom_gpu"),
        ("MemoryError", "oom_host"),
        ("FileNotFoundError", "data"),
    ],
)
def test_the_earliest_evidence_names_the_cause(tmp_path: Path, kind: str, verdict: str) -> None:
    run = RunDir(tmp_path)
    attempt = run.attempt("local-1")
    write_json(
        attempt.rank_evidence(0),
        {"rank": 0, "time": 20.0, "type": "RuntimeError", "message": "Connection closed by peer"},
    )
    write_json(
        attempt.rank_evidence(1), {"rank": 1, "time": 10.0, "type": kind, "message": "first"}
    )
    found = conclude(run, attempt)
    assert (found.status, found.verdict, found.rank, found.cause) == (
        "failed",
        verdict,
        1,
        f"{kind}: first",
    )
    assert found.hint


def fake(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def slurm_attempt(run: RunDir, tools: Path, restart: int, **more: str) -> int:
    """One start of Slurm job 7 on this machine, with fake Slurm commands."""
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": str(restart),
    }
    argv = [sys.executable, "-m", "launch.node", str(run.path), "--slurm"]
    return subprocess.run(
        argv, cwd=PROJECT, env={**environment, **more}, stdin=subprocess.DEVNULL, timeout=60
    ).returncode


def test_slurm_starts_a_failed_machine_again_within_its_budget_and_an_error_never(
    tmp_path: Path,
) -> None:
    words = '{"rank": 0, "time": 1.0, "type": "OSError", "message": "[Errno 5] Input/output error"}'
    script = (
        f"mkdir -p $0/ranks; echo '{words}' > $0/ranks/0.json; echo $BATCHYARD_DEADLINE >"
        " $0/deadline; exit 1"
    )
    run = run_dir(tmp_path, ["sh", "-c", script, f"{tmp_path}/x-00000000/attempts/{{ATTEMPT}}"])
    tools = tmp_path / "bin"
    fake(tools, "scontrol", f'echo "$@" >> {tmp_path}/requeued')
    fake(tools, "squeue", "echo EndTime=2031-02-03T04:05:06")
    for restart in range(5):
        assert slurm_attempt(run, tools, restart) == 1
    assert (tmp_path / "requeued").read_text() == "requeue 7\n" * 3
    end_time = time.mktime((2031, 2, 3, 4, 5, 6, 0, 0, -1))
    assert float((run.attempt("slurm-7.0").path / "deadline").read_text()) == end_time
    assert read_json(run.attempt("slurm-7.0").record)["deadline"] == end_time

    (tmp_path / "requeued").unlink()
    other = run_dir(
        tmp_path / "error",
        [
            "sh",
            "-c",
            script.replace("OSError", "KeyError").replace("Input/output", ""),
            f"{tmp_path}/error/x-00000000/attempts/{{ATTEMPT}}",
        ],
    )
    assert slurm_attempt(other, tools, 0, SLURM_JOB_END_TIME="1800000000") == 1
    assert not (tmp_path / "requeued").exists()
    assert float((other.attempt("slurm-7.0").path / "deadline").read_text()) == 1800000000


def test_a_run_submitted_from_within_an_array_task_is_not_that_task(tmp_path: Path) -> None:
    """It inherited the task's variables, asked Slurm to requeue the outer job, and lost its own."""
    words = '{"rank": 0, "time": 1.0, "type": "OSError", "message": "[Errno 5] Input/output error"}'
    script = f"mkdir -p $0/ranks; echo '{words}' > $0/ranks/0.json; exit 1"
    run = run_dir(tmp_path, ["sh", "-c", script, f"{tmp_path}/x-00000000/attempts/{{ATTEMPT}}"])
    fake(tmp_path / "bin", "scontrol", f'echo "$@" >> {tmp_path}/requeued')
    fake(tmp_path / "bin", "squeue", 'case "$*" in *"-j 7 -O RestartCnt"*) echo "0   ";; esac')
    outer = {"SLURM_ARRAY_JOB_ID": "3", "SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_COUNT": "1"}
    assert slurm_attempt(run, tmp_path / "bin", 2, **outer) == 1
    assert [a.id for a in run.all_attempts()] == ["slurm-7.0"]
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


def test_a_signal_to_the_whole_tree_does_not_kill_what_knows_nothing_of_it(tmp_path: Path) -> None:
    """proctrack/linuxproc: torchrun died of USR2, and each attempt ended without a checkpoint."""
    run = run_dir(tmp_path, ["sh", "-c", "kill -USR2 $$; kill -USR1 $$; echo alive > alive"])
    end(start(run))
    assert (run.path / "alive").read_text() == "alive\n"


NEVER, NOW, BEFORE, LIMIT = (
    "None",
    "2031-02-03T04:05:06",
    "2001-02-03T04:05:06",
    "2031-02-03T04:10:00",
)
ENDING = "COMPLETING Reason=None Restarts=0"


@pytest.mark.parametrize(
    ("told", "state", "end", "verdict"),
    [
        (NOW, "RUNNING", LIMIT, "preempted"),
        (BEFORE, "RUNNING", LIMIT, "timeout"),
        (NEVER, "RUNNING", LIMIT, "timeout"),
        (NEVER, ENDING, NOW, "cancelled"),
        (NOW, ENDING, NOW, "preempted"),
        (NEVER, ENDING, LIMIT, "timeout"),
        (NEVER, ENDING.replace("=0", "=1"), NOW, "timeout"),
        (NEVER, ENDING.replace("None", "NodeDown"), NOW, "timeout"),
    ],
)
def test_slurm_tells_a_timeout_a_preemption_and_a_cancel_apart(
    tmp_path: Path, told: str, state: str, end: str, verdict: str
) -> None:
    """With a limit of a minute every preemption read as a timeout, and a scancel, which sends TERM,
    was answered by a requeue. Slurm's word of an earlier attempt does not count.
    """
    own = Outcome("stopped", "timeout", "slurm-7.0", "trainer", 5, cause="the time limit is near")
    own.write(tmp_path / "own.json")
    run = run_dir(
        tmp_path,
        [
            "cp",
            str(tmp_path / "own.json"),
            f"{tmp_path}/x-00000000/attempts/{{ATTEMPT}}/outcome.json",
        ],
    )
    fake(tmp_path / "bin", "squeue", f"echo EndTime={LIMIT}")
    shown = f"JobId=7 JobState={state} EndTime={end} PreemptTime={told}"
    fake(
        tmp_path / "bin",
        "scontrol",
        f'if [ "$1" = show ]; then echo "{shown}"; else echo "$@" >> {tmp_path}/asked; fi',
    )
    assert slurm_attempt(run, tmp_path / "bin", 0) == 75
    for path in (run.outcome, run.attempt("slurm-7.0").outcome):
        found = Outcome.read(path)
        assert found and (found.status, found.verdict, found.global_step) == ("stopped", verdict, 5)
    assert (tmp_path / "asked").exists() == (verdict != "cancelled")


def test_a_cluster_that_does_not_answer_gives_no_deadline(tmp_path: Path) -> None:
    run = run_dir(tmp_path, ["sh", "-c", "echo x${BATCHYARD_DEADLINE}x > deadline"])
    fake(tmp_path / "bin", "squeue", "echo 'slurm_load_jobs error' >&2; exit 1")
    fake(tmp_path / "bin", "scontrol", "exit 1")
    slurm_attempt(run, tmp_path / "bin", 0)
    assert (run.path / "deadline").read_text() == "xx\n"


def test_done_already_is_the_first_act(tmp_path: Path) -> None:
    run = run_dir(tmp_path, ["sh", "-c", "exit 1"])
    write_json(
        run.outcome,
        {"status": "completed", "verdict": "completed", "attempt": "local-1", "written_by": "t"},
    )
    assert end(start(run, "local-2")) == 0
    assert not run.attempt("local-2").path.exists()


def test_a_second_attempt_at_once_is_refused(tmp_path: Path) -> None:
    run = run_dir(tmp_path, ["sh", "-c", "echo > ready; while [ ! -e go ]; do sleep 0.02; done"])
    first = start(run)
    deadline = time.monotonic() + 30
    while not (run.path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert end(start(run, "local-2")) == 1
    assert not run.attempt("local-2").record.exists()
    (run.path / "go").touch()
    end(first)


def test_the_lease_of_a_machine_that_died_is_waited_for(tmp_path: Path) -> None:
    run = run_dir(tmp_path, ["sh", "-c", "exit 3"])
    write_json(
        run.lock, {**lock.me(), "host": "n1", "boot": "of another machine", "attempt": "slurm-7.0"}
    )
    soon = time.time() - lock.LEASE_S + 2
    os.utime(run.lock, (soon, soon))
    assert end(start(run, "local-2")) == 1
    assert run.attempt("local-2").record.exists()  # it did run, once the lease was over


def test_a_job_whose_time_is_over_before_a_lost_nodes_lease_goes_on(tmp_path: Path) -> None:
    """With a limit of a minute the job that came after a power cut was signalled while it waited,
    and failed for good.
    """
    run = run_dir(tmp_path, ["sh", "-c", "exit 3"])
    write_json(
        run.lock, {**lock.me(), "host": "n1", "boot": "of another machine", "attempt": "slurm-7.0"}
    )
    fake(tmp_path / "bin", "scontrol", f'test "$1" = show || echo "$@" >> {tmp_path}/requeued')
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_RESTART_COUNT": "1",
    }
    argv = [sys.executable, "-m", "launch.node", str(run.path), "--slurm"]
    process = subprocess.Popen(argv, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not run.attempt("slurm-7.1").path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 75 and (tmp_path / "requeued").read_text() == "requeue 7\n"
    assert not run.attempt("slurm-7.1").record.exists() and not run.outcome.exists()


def take_and_count(path: str, counter: str, go: float) -> None:
    time.sleep(max(0.0, go - time.time()))
    mine = Lock(Path(path))
    for _ in range(20):
        if mine.acquire():
            with open(counter, "a") as out:  # two holders at once would leave "in in"
                out.write("in\n")
                out.flush()
                out.write("out\n")
            mine.release()


def test_a_lock_has_one_holder_though_many_try_and_a_dead_one_is_in_the_way(tmp_path: Path) -> None:
    path, counter = tmp_path / "lock.json", tmp_path / "counter"
    dead = subprocess.Popen(["true"])
    dead.wait()
    write_json(path, {**lock.me(), "pid": dead.pid, "start": 1})
    context = multiprocessing.get_context("spawn")
    go = time.time() + 1.0
    tries = [
        context.Process(target=take_and_count, args=(str(path), str(counter), go)) for _ in range(4)
    ]
    for process in tries:
        process.start()
    for process in tries:
        process.join(60)
        assert process.exitcode == 0
    lines = counter.read_text().split()
    assert lines and lines == ["in", "out"] * (len(lines) // 2)
    assert not path.exists()


def test_a_lock_of_another_machine_holds_until_its_lease_ends(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    write_json(path, {**lock.me(), "host": "elsewhere", "boot": "another"})
    assert not Lock(path).acquire()
    past = time.time() - lock.LEASE_S - 1
    os.utime(path, (past, past))
    mine = Lock(path)
    assert mine.acquire()
    mine.release()


def test_a_lock_of_this_process_under_a_reused_pid_is_not_held(tmp_path: Path) -> None:
    path = tmp_path / "lock.json"
    write_json(path, {**lock.me(), "start": 12345})  # our pid, another start
    assert Lock(path).holder() is None


def test_a_task_of_an_array_takes_its_own_run(tmp_path: Path) -> None:
    says = ["sh", "-c", 'echo "$0" > "$1"; exit 1']
    runs = [RunDir(tmp_path / name) for name in ("x-aaaaaaaa", "x-bbbbbbbb")]
    for run in runs:
        run_dir(tmp_path, [*says, run.run_id, f"{run.path}/said"]).path.rename(run.path)
    listing = tmp_path / "points.json"
    write_json(listing, {"runs": [str(run.path) for run in runs], "script": f"srun {runs[0].path}"})
    fake(tmp_path / "bin", "scontrol", "exit 0")
    fake(tmp_path / "bin", "squeue", "exit 0")
    task = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1"}
    environment = {**os.environ, **task, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    argv = [sys.executable, "-m", "launch.node", str(listing), "--slurm"]
    subprocess.run(
        argv, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert (runs[1].path / "said").read_text() == "x-bbbbbbbb\n" and not (
        runs[0].path / "said"
    ).exists()
    assert [a.id for a in runs[1].all_attempts()] == ["slurm-7_1.0"] and not runs[0].all_attempts()
    assert runs[1].all_attempts()[0].script.read_text() == f"srun {runs[1].path}"


def test_a_task_whose_run_was_removed_makes_no_other(tmp_path: Path) -> None:
    sweep = SweepDir(tmp_path / "x.sweep")
    sweep.slurm.mkdir(parents=True)
    run = sweep.run("x-aaaaaaaa")
    listing = array_listing.write(
        sweep,
        [array_listing.Task(run, {"job": "", "plan": {}, "data": 0})],
        "",
        {"root": "", "record": {}},
        [{}],
    )
    task = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}
    argv = [sys.executable, "-m", "launch.node", str(listing), "--slurm"]
    done = subprocess.run(
        argv,
        cwd=PROJECT,
        env={**os.environ, **task},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        0,
        "",
    ) and "its run was removed, or queued again since" in done.stdout
    assert not run.path.exists()
