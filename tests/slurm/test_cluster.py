"""The test cluster is what the job tests take it for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .cluster import Cluster, ClusterError, Options
from .conftest import Slurm

# A step's direct child counts USR2. It has blocked it before it started a child of its own, where a
# signal therefore stays pending for good and can be read. Slurm is done with the first signal, the
# children's children included, when the second arrives.
SIGNALLED = """
import signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
child = subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL)
out = open(sys.argv[1], "w", buffering=1)
for word in ("ready", "first", "second"):
    print(word, file=out)
    if word != "second":
        signal.sigwait({signal.SIGUSR2})
lines = open(f"/proc/{child.pid}/status").read().splitlines()
pending = sum(int(x.split()[1], 16) for x in lines if x.startswith(("SigPnd", "ShdPnd")))
print("child got it" if pending >> (signal.SIGUSR2 - 1) & 1 else "child got nothing", file=out)
child.kill()
child.wait()
"""


def until(
    slurm: Slurm, job_id: str, what: str, condition: Callable[[], object], timeout_s: float = 30
) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"no {what} within {timeout_s} s\n{slurm.evidence(job_id)}"
        time.sleep(0.02)


def words(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def signalled_child(slurm: Slurm, tmp_path: Path) -> str:
    """What the child of a step's direct child has seen of `scancel --signal=USR2`."""
    script, out = tmp_path / "signalled.py", tmp_path / "out"
    script.write_text(SIGNALLED)
    job_id = slurm.sbatch(
        "-o", str(tmp_path / "log"), "--wrap", f"srun {sys.executable} {script} {out}"
    )
    for seen in ("ready", "first"):
        until(slurm, job_id, seen, lambda seen=seen: seen in words(out))
        slurm.run("scancel", "--signal=USR2", job_id)
    slurm.wait(job_id, "COMPLETED")
    return words(out)[-1]


@pytest.fixture
def other(cluster_dir: Path) -> Iterator[Cluster]:
    """A second cluster beside the first, not booted yet."""
    cluster = Cluster(f"{cluster_dir}-other")
    yield cluster
    cluster.down()


def test_two_nodes_are_idle(cluster: Slurm) -> None:
    assert len(cluster.nodes) == 2
    assert set(cluster.cluster.node_states().values()) == {"idle"}


def test_a_step_on_two_nodes_sees_two_hosts_that_reach_each_other(cluster: Slurm) -> None:
    assert sorted(cluster.run("srun", "-N2", "hostname").split()) == sorted(cluster.nodes)
    first, second = cluster.nodes
    cluster.run(
        "srun", "-w", first, "bash", "-c", f"exec 3<>/dev/tcp/{second}/{_slurmd_port(cluster)}"
    )


def _slurmd_port(cluster: Slurm) -> str:
    return (
        cluster.run("scontrol", "show", "node", cluster.nodes[1], "-o")
        .split(" Port=")[1]
        .split()[0]
    )


def test_processes_are_tracked_by_cgroup(cluster: Slurm) -> None:
    assert "proctrack/cgroup" in cluster.run("scontrol", "show", "config")
    groups = cluster.run("srun", "-N1", "cat", "/proc/self/cgroup")
    assert (
        f"freezer:/slurm_{cluster.nodes[0]}/" in groups
        or f"freezer:/slurm_{cluster.nodes[1]}/" in groups
    )


def test_a_cluster_without_the_asked_for_proctrack_fails(other: Cluster) -> None:
    with pytest.raises(ClusterError, match=r"asked for proctrack/cgroup, came up with.*linuxproc"):
        other.up(Options(accounting=False, settings={"ProctrackType": "proctrack/linuxproc"}))


def test_cgroup_signals_the_direct_child_only(cluster: Slurm, tmp_path: Path) -> None:
    assert signalled_child(cluster, tmp_path) == "child got nothing"


def test_linuxproc_signals_the_whole_tree(other: Cluster, tmp_path: Path) -> None:
    """The test of the test above."""
    other.up(Options(accounting=False, proctrack="linuxproc"))
    assert signalled_child(Slurm(other), tmp_path) == "child got it"


def test_a_fake_gpu_is_given_out(cluster: Slurm) -> None:
    assert cluster.run("srun", "--gres=gpu:1", "printenv", "CUDA_VISIBLE_DEVICES") in ("0", "1")


def test_a_requeued_job_starts_again_and_counts(cluster: Slurm, tmp_path: Path) -> None:
    job_id = cluster.sbatch(
        "--requeue",
        "--open-mode=append",
        "--comment=token=abc d",
        "-o",
        str(tmp_path / "log"),
        "--wrap",
        f"echo attempt ${{SLURM_RESTART_COUNT:-0}} >> {tmp_path}/out; sleep 600",
    )
    cluster.wait(job_id, "RUNNING")
    until(cluster, job_id, "first attempt", lambda: words(tmp_path / "out"))
    cluster.run("scontrol", "requeue", job_id)
    job = cluster.wait(job_id, "RUNNING", restarts=1)
    assert (job["Restarts"], job["Requeue"], job["Comment"]) == ("1", "1", "token=abc d")
    assert cluster.squeue(job_id)["state"] == "RUNNING"
    until(
        cluster,
        job_id,
        "second attempt",
        lambda: words(tmp_path / "out") == ["attempt 0", "attempt 1"],
    )


def test_accounting_knows_how_a_job_ended(cluster: Slurm, tmp_path: Path) -> None:
    job_id = cluster.sbatch("-o", str(tmp_path / "log"), "--wrap", "exit 3")
    cluster.wait(job_id, "FAILED")
    # The database is up to five seconds behind.
    ask = ("sacct", "-X", "-n", "-P", "-j", job_id, "-o", "state,exitcode")
    until(cluster, job_id, "its end in sacct", lambda: cluster.run(*ask) == "FAILED|3:0")


def test_high_takes_the_node_of_low_with_grace_and_its_signal(
    cluster: Slurm, tmp_path: Path
) -> None:
    script = tmp_path / "low.sh"
    script.write_text(
        f"#!/bin/sh\ntrap 'echo usr2 >> {tmp_path}/out; exit 0' USR2\necho ready >>"
        f" {tmp_path}/out\nsleep 600 & wait\n"
    )
    script.chmod(0o755)
    wrap = ("--wrap", f"srun {script}")
    log = ("-o", str(tmp_path / "log-%j"))
    low = cluster.sbatch(
        "--qos=low", "-N2", "--exclusive", "--requeue", "--signal=USR2@1", *log, *wrap
    )
    until(cluster, low, "both tasks", lambda: words(tmp_path / "out").count("ready") == 2)
    high = cluster.sbatch("--qos=high", "-N2", "--exclusive", *log, "--wrap", "srun true")
    until(cluster, low, "the user's signal", lambda: "usr2" in words(tmp_path / "out"))
    cluster.wait(high, "COMPLETED")


def test_a_power_cut_requeues_the_job_and_the_node_comes_back(
    cluster: Slurm, tmp_path: Path
) -> None:
    step = f"srun sh -c 'touch {tmp_path}/$(hostname).$SLURM_RESTART_COUNT; sleep 600'"
    job_id = cluster.sbatch("--requeue", "-N2", "-o", str(tmp_path / "log"), "--wrap", step)
    # Before the tasks run a lost node is srun's own error, and the job ends FAILED without a
    # requeue.
    until(
        cluster,
        job_id,
        "tasks on both nodes",
        lambda: all((tmp_path / f"{x}.").exists() for x in cluster.nodes),
    )
    lost = cluster.nodes[1]
    cluster.kill_node(lost)
    cluster.wait(job_id, "PENDING", restarts=1, timeout_s=120)
    assert cluster.cluster.node_states()[lost].startswith("down")
    cluster.start_node(lost)
    until(
        cluster,
        job_id,
        "second start",
        lambda: all((tmp_path / f"{x}.1").exists() for x in cluster.nodes),
    )
    job = cluster.wait(job_id, "RUNNING", restarts=1)
    assert job["NumNodes"] == "2"


def test_up_ends_what_a_killed_owner_left(other: Cluster) -> None:
    """A second object knows only what the directory says, as the session after a killed
    one does.
    """
    other.up(Options(accounting=False))
    before = {name: pid for name, (pid, _) in other.processes.state["processes"].items()}
    heir = Cluster(other.dir)
    heir.up(Options(accounting=False))
    assert not any(other.processes.alive(name) for name in before)
    assert set(heir.node_states().values()) == {"idle"}
    heir.down()
    assert not other.dir.exists()
