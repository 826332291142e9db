"""digits on clusters of other kinds: preempted, out of time, a node without power, or no
accounting; always the same weights.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.cli import PROJECT, SHORT, Shell, outcome, step_reached, wait_for
from tests.slurm.cluster import Options
from tests.slurm.conftest import Slurm, booted
from tests.slurm.test_digits import TWO_NODES, job_id, wait_for_end
from tests.slurm.test_sweep import requeue_one_of_two
from trainer.config.files.layout import RunDir

# epochs enough to outlast Slurm's shortest limit of a minute
LONG = (
    "--steps",
    "8000",
    "--nproc",
    "1",
    "--set",
    "train.epochs=400",
    "--set",
    "resources.cpus_per_task=1",
    "--timeout-min",
    "1",
)
LOW, FORBIDDEN, SCAVENGE = "{qos: low}", "{qos: low, requeue: false}", "{partition: scavenge}"
NO_USER_SIGNAL = {"SlurmctldParameters": "", "KillWait": "30"}


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "site", "preempt", "cut"),
    [
        pytest.param(Options(), LOW, "--qos=high", True, id="cgroup"),
        pytest.param(Options(proctrack="linuxproc"), LOW, "--qos=high", True, id="linuxproc"),
        pytest.param(
            Options(settings={"PreemptMode": "CANCEL"}), LOW, "--qos=high", False, id="cancel"
        ),
        pytest.param(
            Options(settings={"JobRequeue": "0"}),
            FORBIDDEN,
            "--qos=high",
            False,
            id="requeue-forbidden",
        ),
        pytest.param(Options(settings=NO_USER_SIGNAL), LOW, "--qos=high", False, id="only-term"),
        pytest.param(
            Options(accounting=False), SCAVENGE, "--partition=main", False, id="no-accounting"
        ),
    ],
)
def test_a_disturbed_run_equals_an_undisturbed_one(
    cluster_dir: Path, tmp_path: Path, options: Options, site: str, preempt: str, cut: bool
) -> None:
    with booted(Path(f"{cluster_dir}-drill"), options) as slurm:
        (tmp_path / "site.yaml").write_text(f"backend: slurm\nslurm: {site}\n")
        power = (
            f"{sys.executable} {PROJECT}/tests/slurm/cluster.py kill-node --dir {slurm.cluster.dir}"
        )
        shell = Shell(
            tmp_path / "runs", env=(*slurm.env.items(), ("XDG_CACHE_HOME", str(tmp_path / "cache")))
        )
        printed = shell.run(
            "drill",
            "digits",
            "--backend",
            "slurm",
            *LONG,
            "--kills",
            str(3 + cut),
            "--site",
            str(tmp_path / "site.yaml"),
            "--preempt-with",
            preempt,
            *(("--cut-with", power) if cut else ()),
            timeout_s=1200,
        )
        assert (
            re.search(r"weights_sha256: \w{64}, the same\n", printed)
            and "the same bytes" in printed
        ), printed
        found = re.search(r"^attempts: (.*)$", printed, re.M)
        ends = (
            Counter(
                {word: int(n) for n, word in (part.split(" ", 1) for part in found[1].split(", "))}
            )
            if found
            else Counter()
        )
        assert ends["preempted"] >= 2 and ends["timeout"] >= 1 and ends["completed"] == 1, printed
        # a power cut leaves no word of its attempt, nor do those that its lock keeps waiting until
        # their minute is over
        assert (ends["no word"] >= 1) == cut, printed


@pytest.mark.long
def test_without_accounting_and_with_kill_on_bad_exit(cluster_dir: Path, tmp_path: Path) -> None:
    """One node, two nodes, a rank's signal that is requeued, one of an array's tasks, a cancel: by
    squeue and our own files.
    """
    with booted(
        Path(f"{cluster_dir}-bare"), Options(accounting=False, kill_on_bad_exit=True)
    ) as slurm:
        environment = (*slurm.env.items(), ("XDG_CACHE_HOME", str(tmp_path / "cache")))
        whole = {
            nodes: finished(Shell(tmp_path / f"whole-{nodes}", env=environment), slurm, nodes)
            for nodes in (1, 2)
        }
        assert (
            outcome(whole[1]).weights_sha256 == outcome(here(tmp_path, environment)).weights_sha256
        )
        for nodes in (1, 2):
            shell = Shell(tmp_path / f"signalled-{nodes}", env=environment)
            run = queued(shell, nodes)
            wait_for("step 10", step_reached(run, 10))
            slurm.run("scancel", "--signal=USR2", job_id(run))
            wait_for_end(run)
            assert (
                len(run.all_attempts()) == 2
                and slurm.wait(job_id(run), "COMPLETED")["Restarts"] == "1"
            )
            assert outcome(run).weights_sha256 == outcome(whole[nodes]).weights_sha256
        requeue_one_of_two(Shell(tmp_path / "array", env=environment), slurm)
        shell = Shell(tmp_path / "cancelled", env=environment)
        run = queued(shell, 1)
        wait_for("step 5", step_reached(run, 5))
        shell.run("cancel", "digits")
        assert slurm.wait(job_id(run), {"FAILED", "CANCELLED", "COMPLETED"})["Restarts"] == "0"
        assert (outcome(run).status, outcome(run).verdict) == ("stopped", "cancelled")


def queued(shell: Shell, nodes: int) -> RunDir:
    shell.run("submit", "digits", *SHORT, "--backend", "slurm", *(TWO_NODES if nodes == 2 else ()))
    return shell.only_run()


def finished(shell: Shell, slurm: Slurm, nodes: int) -> RunDir:
    run = queued(shell, nodes)
    wait_for_end(run)
    assert slurm.wait(job_id(run), "COMPLETED")["NumNodes"] == str(nodes)
    return run


def here(tmp_path: Path, environment: tuple[tuple[str, str], ...]) -> RunDir:
    shell = Shell(tmp_path / "here", env=environment)
    shell.run("submit", "digits", *SHORT, "--backend", "local")
    return shell.only_run()
