"""The cluster that the tests of this folder share, and what they say to it."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cli import Shell

from .cluster import PATH, Cluster, ClusterError, Options, missing, start_tick

# Not pytest's own temporary folder: a later session has to find what a killed one left.
HOME = Path(f"/tmp/batchyard-slurm-{os.getuid()}")
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"}
SQUEUE = {
    "job_id": "%i",
    "state": "%T",
    "reason": "%r",
    "name": "%j",
    "partition": "%P",
    "qos": "%q",
    "nodes": "%D",
}
SQUEUE |= {
    "nodelist": "%N",
    "time_limit": "%l",
    "dependency": "%E",
    "start_time": "%S",
    "comment": "%k",
}


class Slurm:
    """A client of the cluster. Job ids are those that squeue shows: `12`, `12_3`."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.nodes = cluster.nodes
        self.env = {
            "SLURM_CONF": cluster.processes.env["SLURM_CONF"],
            "PATH": f"{os.environ.get('PATH', '')}:{PATH}",
        }

    def run(self, *argv: str, timeout_s: float = 60) -> str:
        """The command's standard output, stripped; a failing one raises with its argv, status and
        standard error.
        """
        done = subprocess.run(
            argv,
            env=os.environ | self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if done.returncode:
            raise ClusterError(
                f"{' '.join(argv)}: status"
                f" {done.returncode}\n{done.stderr[-2000:]}{done.stdout[-2000:]}"
            )
        return done.stdout.strip()

    def sbatch(self, *argv: str) -> str:
        """The job id."""
        return self.run("sbatch", "--parsable", *argv).split(";")[0]

    def squeue(self, job_id: str) -> dict[str, str]:
        """The fields of SQUEUE while the job is in the queue, nothing once it has left it."""
        rows = self.run(
            "squeue", "-h", "-j", job_id, "-o", "\x1f".join(SQUEUE.values())
        ).splitlines()
        if len(rows) > 1:
            raise ClusterError(f"{job_id} is {len(rows)} jobs: ask for one task of the array")
        return (
            dict(zip(SQUEUE, (word.strip() for word in rows[0].split("\x1f")), strict=True))
            if rows
            else {}
        )

    def jobs(self, job_id: str) -> list[dict[str, str]]:
        """`scontrol show job`, one entry a task of an array; also jobs that are over."""
        lines = self.run("scontrol", "show", "job", "-o", job_id).splitlines()
        # A value may hold spaces (Command, Comment), so an entry ends where the next `Word=`
        # begins.
        return [dict(re.findall(r"(\S+?)=(.*?)(?= +[A-Z][\w/:]*=|\s*$)", line)) for line in lines]

    def job(self, job_id: str) -> dict[str, str]:
        found = self.jobs(job_id)
        if len(found) != 1:
            raise ClusterError(
                f"{job_id} is {len(found)} jobs: ask for one task of the array, or for jobs()"
            )
        return found[0]

    def wait(
        self, job_id: str, states: str | Collection[str], timeout_s: float = 60, restarts: int = 0
    ) -> dict[str, str]:
        """The job's fields once it is in one of `states` after at least `restarts` restarts; it
        fails at the deadline, and at once where the job is over in another state.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout_s
        while True:
            job = self.job(job_id)
            if job["JobState"] in wanted and int(job["Restarts"]) >= restarts:
                return job
            if job["JobState"] in OVER - wanted:
                pytest.fail(
                    f"job {job_id} ended, and not as {sorted(wanted)}\n{self.evidence(job_id)}"
                )
            if time.monotonic() > end:
                pytest.fail(
                    f"job {job_id}: not {sorted(wanted)} within {timeout_s}"
                    f" s\n{self.evidence(job_id)}"
                )
            time.sleep(0.05)

    def evidence(self, job_id: str) -> str:
        parts = [
            self.run("squeue", "-a"),
            self.run("scontrol", "show", "job", job_id),
            self.run("sinfo", "-N", "-l"),
        ]
        output = Path(self.jobs(job_id)[0].get("StdOut", "/dev/null"))
        if output.is_file():
            parts.append(f"--- {output}\n{output.read_text(errors='replace')[-2000:]}")
        return "\n".join([*parts, self.cluster.log_tail(40)])

    def on_network_of(self, node: str, *argv: str) -> subprocess.Popen[str]:
        """Starts a command where the node's own network is."""
        pid, _ = self.cluster.processes.state["processes"][f"node-{node}"]
        return subprocess.Popen(
            ["nsenter", f"--net=/proc/{pid}/ns/net", *argv], stdout=subprocess.PIPE, text=True
        )

    def kill_node(self, node: str) -> None:
        """Returns at once; Slurm requeues the node's jobs 10 to 35 s later."""
        self.cluster.kill_node(node)

    def start_node(self, node: str) -> None:
        """Returns when Slurm counts the node in again."""
        self.cluster.start_node(node)
        self.cluster.wait_for(f"{node} in service", lambda: self._in_service(node))

    def _in_service(self, node: str) -> bool:
        return self.cluster.node_states()[node] in ("idle", "mixed", "allocated")

    def clean(self) -> None:
        """Every node up and idle, no job left."""
        self.run("scancel", "-u", "root")
        for node in self.nodes:
            if not self.cluster.processes.alive(f"node-{node}"):
                self.cluster.start_node(node)
        self.cluster.wait_for(
            "idle nodes and an empty queue",
            lambda: (
                set(self.cluster.node_states().values()) == {"idle"}
                and not self.run("squeue", "-h")
            ),
        )


def sweep() -> None:
    """Ends the clusters of sessions that were killed.

    A cluster's directory is named after the process that owns it.
    """
    HOME.mkdir(mode=0o755, exist_ok=True)
    with open(HOME / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for directory in HOME.glob("*-*"):
            pid, tick = directory.name.split("-")[:2]
            if start_tick(int(pid)) != tick:
                Cluster(directory).down()


@pytest.fixture(scope="session")
def cluster_dir() -> Path:
    """Where this session may boot a cluster; a second one adds `-<word>`."""
    if problem := missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    sweep()
    return HOME / f"{os.getpid()}-{start_tick(os.getpid())}"


@contextmanager
def booted(directory: Path, options: Options | None = None) -> Iterator[Slurm]:
    """A cluster for as long as the block."""
    cluster = Cluster(directory)
    try:
        cluster.up(options, owner=os.getpid())
        yield Slurm(cluster)
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def cluster(cluster_dir: Path) -> Iterator[Slurm]:
    with booted(cluster_dir) as found:
        yield found


@pytest.fixture(scope="module")
def environment(
    cluster: Slurm, tmp_path_factory: pytest.TempPathFactory
) -> tuple[tuple[str, str], ...]:
    """The cluster's variables and one cache of prepared data."""
    return (*cluster.env.items(), ("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache"))))


@pytest.fixture
def shell(tmp_path: Path, environment: tuple[tuple[str, str], ...]) -> Shell:
    return Shell(tmp_path / "runs", env=environment)


@pytest.fixture
def held(cluster: Slurm) -> Iterator[None]:
    """Nothing starts."""
    cluster.run("scontrol", "update", "partition=main", "state=down")
    yield
    cluster.run("scontrol", "update", "partition=main", "state=up")


@pytest.fixture(autouse=True)
def _leave_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "cluster" in request.fixturenames:
        request.getfixturevalue("cluster").clean()


@pytest.hookimpl(tryfirst=True)  # before -m selects
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)
