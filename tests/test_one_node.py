"""One node needs no name that resolves; what is said of a name that does not, and of a network,
goes by the number of nodes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.plan.placement import ONE_NODE
from launch.runs.verdict import judge
from tests.cli import PROJECT
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import Outcome

LOST = "Connection closed by peer [127.0.0.1]:35555"
GAI = (
    "[W1130 21:30:{second}.868 socket.cpp:764] [c10d] The IPv6 network addresses of"
    " (nowhere-laptop, 36451) cannot be retrieved (gai error: -2 - Name or service not known).\n"
)
# The trainer's own start, without a run: a group of two, and a sum over it.
TWO_RANKS = """
import os, torch, torch.distributed as dist
from trainer.ranks.group import stay_on_loopback
stay_on_loopback()
dist.init_process_group("gloo")
number = torch.ones(1)
dist.all_reduce(number)
open(f"{os.environ['FOLDER']}/{dist.get_rank()}", "w").write(f"{number.item():.0f} {os.environ['MASTER_ADDR']}")
dist.destroy_process_group()
"""


def no_name(*argv: str) -> list[str]:
    """The command on a machine whose name nobody knows."""
    if shutil.which("unshare") is None:
        pytest.skip("takes unshare")
    own = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    command = [
        "unshare",
        *own,
        "--uts",
        "sh",
        "-c",
        'hostname nowhere-laptop && exec "$@"',
        "sh",
        *argv,
    ]
    if subprocess.run(
        [*command[: command.index("sh")], "true"], capture_output=True, check=False
    ).returncode:
        pytest.skip("this system gives no names of one's own")
    return command


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_machine_whose_name_does_not_resolve(tmp_path: Path, ranks: int) -> None:
    script = tmp_path / "two_ranks.py"
    script.write_text(TWO_RANKS)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONWARNINGS"}  # torchrun's own
    environment |= {"PYTHONPATH": str(PROJECT), "FOLDER": str(tmp_path), "OMP_NUM_THREADS": "1"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *ONE_NODE,
        f"--nproc-per-node={ranks}",
        str(script),
    ]
    ended = subprocess.run(
        no_name(*torchrun),
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert [(tmp_path / str(rank)).read_text() for rank in range(ranks)] == [
        f"{ranks} 127.0.0.1"
    ] * ranks
    assert "gai error" not in ended.stderr and "resolve hostname" not in ended.stderr


def attempt(folder: Path, nodes: int, log: str, *, evidence: bool = True) -> tuple[RunDir, Attempt]:
    run = RunDir(folder / "x-00000000")
    found = run.attempt("local-1")
    write_json(found.record, {"world_size": 2, "nodes": nodes, "host": "n1"})
    write_json(found.node_record(0), {"exit_status": 1, "signal": None, "oom_kills": 0})
    found.node_log(0).write_text(log)
    if evidence:
        said = {"time": 10.0, "type": "DistNetworkError", "message": LOST, "phase": "start-up"}
        for rank in range(2):
            write_json(found.rank_evidence(rank), {"rank": rank, **said})
    return run, found


def end(folder: Path, nodes: int, log: str = "", *, evidence: bool = True) -> Outcome:
    return judge(*attempt(folder, nodes, log, evidence=evidence))


def test_the_network_between_nodes_is_a_hint_where_there_are_several(tmp_path: Path) -> None:
    one, two = end(tmp_path / "1", 1), end(tmp_path / "2", 2)
    assert (one.verdict, two.verdict) == ("infrastructure", "infrastructure")
    assert "the network between the nodes" in str(two.hint)
    assert "between the nodes" not in str(one.hint) and "on one machine" in str(one.hint)


@pytest.mark.parametrize("evidence", [True, False])
def test_a_name_that_does_not_resolve_is_the_cause(tmp_path: Path, evidence: bool) -> None:
    log = "".join(GAI.format(second=second) for second in range(10, 20))
    one, two = (end(tmp_path / str(nodes), nodes, log, evidence=evidence) for nodes in (1, 2))
    cause = "the name 'nowhere-laptop' does not resolve (gai error: -2 - Name or service not known)"
    assert (one.verdict, one.cause, two.cause) == ("infrastructure", cause, cause)
    assert str(one.hint).startswith("name it in /etc/hosts")
    assert str(two.hint).startswith("`getent hosts NAME` has to find it on every node")


def test_a_name_that_has_no_ipv6_address_is_none(tmp_path: Path) -> None:
    # torch says this once of each such name, and goes on
    found = end(tmp_path, 2, GAI.format(second=10))
    assert found.cause == f"DistNetworkError: {LOST}"


def test_who_waits_for_a_name_and_is_stopped_is_told_so(tmp_path: Path) -> None:
    log = "".join(GAI.format(second=second) for second in range(10, 20))
    run, found = attempt(tmp_path, 1, log, evidence=False)
    write_json(found.node_record(0), {"exit_status": 1, "signal": 15, "oom_kills": 0})
    outcome = judge(run, found)
    assert (outcome.status, outcome.verdict) == ("stopped", "preempted")
    assert "until then the name 'nowhere-laptop' does not resolve" in str(outcome.cause)
