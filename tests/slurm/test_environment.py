"""What stands in the environment of a submit decides nothing: a job is what its script says, and
itself.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from launch.runs import state
from tests.cli import BATCHYARD, PROJECT, SHORT, Shell, outcome, step_reached, wait_for
from trainer.config.files.layout import RunDir

from .conftest import Slurm

SMALL = (
    *SHORT,
    "--set",
    "train.epochs=1",
    "--set",
    "train.max_steps=5",
    "--set",
    "resources.nproc_per_node=1",
)
# each changed a job that batchyard submitted, killed it, or hid it
DECIDING = {
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_JOB_NAME": "hello",
    "SBATCH_ARRAY_INX": "0-2",
    "SBATCH_MEM_PER_NODE": "64",
    "SBATCH_EXPORT": "NONE",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_MEM_PER_NODE": "64",
    "SLURM_CPUS_PER_TASK": "3",
    "SQUEUE_STATES": "COMPLETED",
    "SQUEUE_USERS": "nobody",
    "SCANCEL_STATE": "SUSPENDED",
    "SCANCEL_INTERACTIVE": "1",
}


def job(run: RunDir) -> str:
    return str(state.slurm_job(run))


def test_a_job_is_what_its_script_says_whatever_the_environment_says(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    proof = tmp_path / "seen"
    site = tmp_path / "site.yaml"
    site.write_text(f"backend: slurm\nslurm: {{setup: ['echo $MY_OWN $HOME > {proof}']}}\n")
    odd = Shell(
        shell.runs,
        env=(*shell.env, *DECIDING.items(), ("MY_OWN", "variable"), ("HOME", str(tmp_path))),
    )
    cluster.run("scontrol", "update", "partition=main", "state=down")
    try:
        odd.run("submit", "digits", *SMALL, "--site", str(site))
        run = shell.only_run()
        (row,) = cluster.run("squeue", "-h", "-r", "-o", "%i %j %l").splitlines()
        assert row == f"{job(run)} {run.run_id} 10:00"
        assert cluster.job(job(run))["Requeue"] == "1"
        assert "queued" in odd.run("status") and "PartitionDown" in odd.run("why", "digits")
        odd.run("cancel", "digits")
        wait_for("an empty queue", lambda: not cluster.run("squeue", "-h"))
    finally:
        cluster.run("scontrol", "update", "partition=main", "state=up")
    odd.run("submit", "digits", *SMALL, "--site", str(site))
    cluster.wait(job(run), "COMPLETED", timeout_s=120)
    assert outcome(run).status == "completed"
    assert proof.read_text() == f"variable {tmp_path}\n"


def test_a_partition_of_the_environment_is_the_jobs(
    shell: Shell, cluster: Slurm, held: None
) -> None:
    theirs = Shell(
        shell.runs, env=(*shell.env, ("SBATCH_PARTITION", "scavenge"), ("SBATCH_QOS", "high"))
    )
    cluster.run("scontrol", "update", "partition=scavenge", "state=down")
    try:
        printed = theirs.run("submit", "digits", *SMALL, "--backend", "slurm")
        assert "partition scavenge comes from SBATCH_PARTITION in the environment" in printed
        run = shell.only_run()
        found = cluster.squeue(job(run))
        assert (found["partition"], found["qos"]) == ("scavenge", "high")
        assert "--partition=scavenge" in run.attempt(f"slurm-{job(run)}.0").script.read_text()
    finally:
        cluster.run("scancel", "-u", "root")
        cluster.run("scontrol", "update", "partition=scavenge", "state=up")


def test_a_job_that_a_task_of_an_array_submits_requeues_itself(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    """It took itself for that task: USR2 to it killed and requeued the outer job, and its own was
    lost.
    """
    settings = (*SHORT, "--set", "train.epochs=60", "--set", "resources.nproc_per_node=1")
    submit = [
        *BATCHYARD,
        "submit",
        "digits",
        "--runs-dir",
        str(shell.runs),
        *settings,
        "--backend",
        "slurm",
    ]
    script = tmp_path / "outer.sh"
    script.write_text(
        f"#!/bin/sh\n#SBATCH --array=5\n#SBATCH --output={tmp_path}/outer.log\n"
        f"cd {PROJECT}\n{shlex.join(submit)}\nsleep 600\n"
    )
    outer = cluster.sbatch(str(script))
    wait_for("the inner run's job", lambda: list(shell.runs.glob("*/slurm/job.json")))
    run = shell.only_run()
    inner = job(run)
    wait_for("step 10", step_reached(run, 10))
    assert [a.id for a in run.all_attempts()] == [f"slurm-{inner}.0"]
    cluster.run("scancel", "--signal=USR2", inner)
    cluster.wait(inner, {"PENDING", "RUNNING"}, restarts=1)
    assert outcome(run).attempt == f"slurm-{inner}.0"
    assert (
        cluster.job(f"{outer}_5")["JobState"] == "RUNNING"
        and cluster.job(f"{outer}_5")["Restarts"] == "0"
    )
    wait_for("its second attempt", lambda: len(run.all_attempts()) == 2)
    assert run.all_attempts()[-1].id == f"slurm-{inner}.1"
    cluster.run("scancel", "-u", "root")


@pytest.mark.parametrize("line", ["charged to account 12345", "sbatch: partition main was chosen"])
def test_a_line_beside_the_id_changes_nothing(
    shell: Shell, cluster: Slurm, held: None, tmp_path: Path, line: str
) -> None:
    talks = tmp_path / "bin" / "sbatch"
    talks.parent.mkdir()
    path = dict(shell.env)["PATH"]
    talks.write_text(f"#!/bin/sh\necho '{line}'\nPATH={path} exec sbatch \"$@\"\n")
    talks.chmod(0o755)
    odd = Shell(shell.runs, env=(*shell.env, ("PATH", f"{talks.parent}:{path}")))
    printed = odd.run("submit", "digits", *SMALL, "--backend", "slurm")
    (queued,) = cluster.run("squeue", "-h", "-o", "%i").splitlines()
    assert f"queued as Slurm job {queued};" in printed and job(shell.only_run()) == queued
    assert "is queued" in odd.run("submit", "digits", *SMALL, "--backend", "slurm")


def test_why_gives_slurms_reason_for_a_job_that_never_began(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("backend: slurm\nslurm: {setup: ['module load cuda/99']}\n")
    shell.run("submit", "digits", *SMALL, "--site", str(site))
    run = shell.only_run()
    cluster.wait(job(run), "FAILED")
    first, second, third = shell.run("why", "digits").splitlines()
    assert f"Slurm job {job(run)} is FAILED (NonZeroExitCode): its script failed" in first
    assert re.search(r"its log ends with '.*module: command not found': ", second)
    assert third == f"`batchyard submit {run.run_id}` starts it again"
