"""digits on a real cluster: one node and two, stopped by a signal, requeued, cancelled, by hand;
always the same weights.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from launch.drill.kills import of_run
from launch.node.place import free_port
from launch.runs import state
from tests.cli import SHORT, Shell, outcome, step_reached, wait_for
from tests.slurm.conftest import Slurm
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome

TWO_NODES = ("--set", "resources.nodes=2")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, environment: tuple[tuple[str, str], ...]
) -> dict[str, RunDir]:
    """Undisturbed runs: on this machine, on one node, and on two nodes."""
    found = {}
    places = {
        "local": (),
        "one node": ("--backend", "slurm"),
        "two nodes": ("--backend", "slurm", *TWO_NODES),
    }
    for place, options in places.items():
        shell = Shell(tmp_path_factory.mktemp("whole"), env=environment)
        shell.run("submit", "digits", *SHORT, *options)
        found[place] = shell.only_run()
        wait_for_end(found[place])
    return found


def wait_for_end(run: RunDir) -> None:
    wait_for(
        f"the end of {run.run_id}\n",
        lambda: run.outcome.exists() and outcome(run).status == "completed",
        timeout_s=180,
    )


def job_id(run: RunDir) -> str:
    return str(state.slurm_job(run))


def same_as(run: RunDir, whole: RunDir) -> None:
    assert outcome(run).weights_sha256 == outcome(whole).weights_sha256
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_one_node_gives_the_weights_of_this_machine(
    whole: dict[str, RunDir], cluster: Slurm
) -> None:
    run = whole["one node"]
    same_as(run, whole["local"])
    job = cluster.job(job_id(run))
    assert (job["JobName"], job["JobState"], job["NumNodes"]) == (run.run_id, "COMPLETED", "1")
    assert "slurm-" in outcome(run).attempt


def test_two_nodes_train_together(whole: dict[str, RunDir], cluster: Slurm) -> None:
    run = whole["two nodes"]
    assert cluster.job(job_id(run))["NumNodes"] == "2"
    attempt = run.all_attempts()[0]
    assert read_json(attempt.record)["world_size"] == 4
    assert all(attempt.rank_log(rank).exists() for rank in range(4))
    assert outcome(run).test_accuracy > 0.9  # type: ignore[operator]


def test_nodes_agree_on_another_port_where_theirs_is_taken(
    shell: Shell, cluster: Slurm, whole: dict[str, RunDir], held: None
) -> None:
    shell.run("submit", "digits", *SHORT, "--backend", "slurm", *TWO_NODES)
    run = shell.only_run()
    theirs = free_port(f"slurm-{job_id(run)}.0")
    taking = (
        f"import socket; s = socket.create_server(('', {theirs})); print('taken', flush=True);"
        " s.accept(); s.accept()"
    )
    others = [cluster.on_network_of(node, sys.executable, "-c", taking) for node in cluster.nodes]
    try:
        assert all(other.stdout and other.stdout.readline() == "taken\n" for other in others)
        cluster.run("scontrol", "update", "partition=main", "state=up")
        wait_for_end(run)
        assert all(other.poll() is None for other in others)
    finally:
        for other in others:
            other.kill()
            other.communicate()
    (attempt,) = run.all_attempts()
    assert read_json(attempt.record)["master_port"] == theirs + 1
    same_as(run, whole["two nodes"])


def test_a_job_is_cancelled_with_all_its_runs(shell: Shell, cluster: Slurm, held: None) -> None:
    for seed in (0, 1):
        shell.run("submit", "digits", *SHORT, "--backend", "slurm", "--set", f"train.seed={seed}")
    runs = [RunDir(p.parent) for p in shell.runs.glob("*/config.json")]
    assert len(runs) == 2 and all(cluster.squeue(job_id(run)) for run in runs)
    assert shell.run("cancel", "digits").count("stops after a checkpoint") == 2
    assert not any(cluster.squeue(job_id(run)) for run in runs)
    assert shell.run("status").count("cancelled") == 2
    assert "nothing to cancel: it is cancelled" in shell.run("cancel", "digits", code=2)


@pytest.mark.parametrize(("place", "options"), [("one node", ()), ("two nodes", TWO_NODES)])
def test_usr2_stops_after_a_checkpoint_requeues_and_continues(
    shell: Shell, cluster: Slurm, whole: dict[str, RunDir], place: str, options: tuple[str, ...]
) -> None:
    assert "queued as Slurm job" in shell.run(
        "submit", "digits", *SHORT, "--backend", "slurm", *options
    )
    run = shell.only_run()
    wait_for("step 10", step_reached(run, 10))
    cluster.run("scancel", "--signal=USR2", job_id(run))
    wait_for_end(run)
    first, second = run.all_attempts()
    assert (first.id, second.id) == (f"slurm-{job_id(run)}.0", f"slurm-{job_id(run)}.1")
    stopped = read_json(first.outcome)
    assert (stopped["status"], stopped["verdict"]) == ("stopped", "preempted") and stopped[
        "global_step"
    ] < 184
    assert (
        f"continued from step-{stopped['global_step']}.{first.id}" in second.rank_log(0).read_text()
    )
    assert second.script.read_text() == first.script.read_text()
    assert cluster.wait(job_id(run), "COMPLETED")["Restarts"] == "1"
    same_as(run, whole[place])


def test_where_nothing_may_be_requeued_another_job_follows(
    shell: Shell, cluster: Slurm, whole: dict[str, RunDir], tmp_path: Path
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("backend: slurm\nslurm: {requeue: false}\n")
    shell.run("submit", "digits", *SHORT, "--site", str(site))
    run = shell.only_run()
    first = job_id(run)
    assert cluster.job(first)["Requeue"] == "0"
    wait_for("step 10", step_reached(run, 10))
    cluster.run("scancel", "--signal=USR2", first)
    wait_for_end(run)
    second = job_id(run)
    assert [a.id for a in run.all_attempts()] == [
        f"slurm-{first}.0",
        f"slurm-{second}.0",
    ] and first != second
    assert read_json(run.slurm_job)["follows"] == [first]
    assert cluster.wait(second, "COMPLETED")["Restarts"] == cluster.job(first)["Restarts"] == "0"
    assert run.all_attempts()[1].script.read_text() == run.all_attempts()[0].script.read_text()
    same_as(run, whole["one node"])


def test_a_rank_that_is_killed_on_the_second_node_is_named_and_the_job_goes_on(
    shell: Shell, cluster: Slurm, whole: dict[str, RunDir]
) -> None:
    shell.run(
        "submit",
        "digits",
        *SHORT,
        "--backend",
        "slurm",
        *TWO_NODES,
        "--set",
        "execution.checkpoint_every_steps=10",
    )
    run = shell.only_run()
    wait_for("step 30", step_reached(run, 30))
    (pid,) = [
        pid
        for pid, argv, variables in of_run(run)
        if variables.get("RANK") == "3" and "torch.distributed.run" not in argv
    ]
    os.kill(pid, signal.SIGKILL)
    wait_for(
        "the first attempt's verdict", lambda: run.all_attempts()[0].outcome.exists(), timeout_s=120
    )
    assert any(
        "rank 3" in line and "SIGKILL" in line for line in shell.run("why", "digits").splitlines()
    )
    wait_for_end(run)
    first, second = run.all_attempts()
    judged = Outcome.read(first.outcome)
    assert judged and (judged.status, judged.verdict, judged.rank) == (
        "failed",
        "killed",
        3,
    ), judged
    assert judged.global_step and judged.global_step >= 30
    assert "continued from step-" in second.rank_log(0).read_text()
    assert read_json(first.record)["deadline"] > time.time()
    same_as(run, whole["two nodes"])


def test_cancel_stops_after_a_checkpoint_is_not_requeued_and_continues_here_or_there(
    shell: Shell, cluster: Slurm, whole: dict[str, RunDir]
) -> None:
    shell.run("submit", "digits", *SHORT, "--backend", "slurm")
    run = shell.only_run()
    assert (
        "is queued" in (again := shell.run("submit", "digits", *SHORT, "--backend", "slurm"))
        or "is running" in again
    )
    wait_for("step 5", step_reached(run, 5))
    assert "stops after a checkpoint" in shell.run("cancel", "digits")
    job = cluster.wait(job_id(run), {"FAILED", "CANCELLED", "COMPLETED"})
    assert job["Restarts"] == "0"
    assert (outcome(run).status, outcome(run).verdict) == ("stopped", "cancelled")
    # another backend goes on with it: the same ranks and threads
    assert "continued from step-" in shell.run("submit", "digits", *SHORT, "--backend", "local")
    same_as(run, whole["local"])


def test_a_plain_scancel_stops_after_a_checkpoint_and_is_no_reason_to_requeue(
    shell: Shell, cluster: Slurm, whole: dict[str, RunDir]
) -> None:
    """It sends TERM, as a preemption may: the job came back from the dead."""
    shell.run("submit", "digits", *SHORT, "--backend", "slurm", *TWO_NODES)
    run = shell.only_run()
    wait_for("step 5", step_reached(run, 5))
    cluster.run("scancel", job_id(run))
    job = cluster.wait(job_id(run), {"CANCELLED"})
    assert job["Restarts"] == "0"
    wait_for("its verdict", lambda: run.outcome.exists())
    assert (outcome(run).status, outcome(run).verdict, outcome(run).cause) == (
        "stopped",
        "cancelled",
        "cancelled by scancel",
    )
    assert "cancelled" in shell.run("status", "digits")
    wait_for("a queue without it", lambda: not cluster.squeue(job_id(run)))
    shell.run("submit", "digits", *SHORT, "--backend", "slurm", *TWO_NODES)
    wait_for_end(run)
    same_as(run, whole["two nodes"])


def test_a_requeue_brings_no_cancelled_run_back_and_a_submit_does(
    shell: Shell, cluster: Slurm
) -> None:
    """`scontrol requeue` starts ended jobs, too; Slurm 24.11 does so by itself after a
    preemption.
    """
    shell.run("submit", "digits", *SHORT, "--backend", "slurm")
    run = shell.only_run()
    wait_for("step 5", step_reached(run, 5))
    shell.run("cancel", "digits")
    first = job_id(run)
    cluster.wait(first, {"FAILED", "CANCELLED", "COMPLETED"})
    cluster.run("scontrol", "requeue", first)
    cluster.wait(first, {"FAILED", "CANCELLED", "COMPLETED"}, restarts=1)
    assert [a.id for a in run.all_attempts()] == [f"slurm-{first}.0"] and "cancelled" in shell.run(
        "status", "digits"
    )
    (log,) = run.slurm.glob(f"{first}_*log.out")
    assert (
        f"{run.run_id} is cancelled; `batchyard submit {run.run_id}` continues it; slurm-{first}.1"
        " starts" in log.read_text()
    )

    shell.run("submit", "digits", *SHORT, "--backend", "slurm")
    # the job of the submit before has no part in this one
    cluster.run("scontrol", "requeue", first)
    wait_for_end(run)
    assert [read_json(a.record)["generation"] for a in run.all_attempts()] == [1, 2] and outcome(
        run
    ).generation == 2


def test_a_key_reaches_the_trainer_and_stands_nowhere(shell: Shell, cluster: Slurm) -> None:
    key = secrets.token_hex(20)
    own = Shell(shell.runs, env=(*shell.env, ("WANDB_API_KEY", key)))
    printed = own.run("submit", "digits", *SHORT, "--backend", "slurm")
    run = shell.only_run()
    wait_for("step 5", step_reached(run, 5))
    ranks = [
        variables
        for _, argv, variables in of_run(run)
        if "RANK" in variables and "torch.distributed.run" not in argv
    ]
    assert len(ranks) == 2 and all(variables["WANDB_API_KEY"] == key for variables in ranks)
    assert not [argv for _, argv, _ in of_run(run) if key in " ".join(argv)]
    wait_for_end(run)
    assert key not in printed + shell.run("logs", "digits") + cluster.run(
        "scontrol", "show", "job", job_id(run)
    )
    assert not [p for p in shell.runs.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]


def test_a_cancelled_waiting_job_never_starts(shell: Shell, cluster: Slurm) -> None:
    cluster.run("scontrol", "update", "partition=main", "state=down")
    try:
        shell.run("submit", "digits", *SHORT, "--backend", "slurm")
        run = shell.only_run()
        assert "queued" in shell.run("status", "digits")
        why = shell.run("why", "digits")
        assert (
            f"waits in the queue as Slurm job {job_id(run)} since" in why
            and "its partition is closed (PartitionDown)" in why
        )
        shell.run("cancel", "digits")
        wait_for("the queue without it", lambda: not cluster.squeue(job_id(run)))
        assert "cancelled" in shell.run("status", "digits")
        assert not run.metrics.exists()
    finally:
        cluster.run("scontrol", "update", "partition=main", "state=up")


def test_the_kept_script_is_what_show_printed_and_runs_by_hand(
    shell: Shell, cluster: Slurm, whole: dict[str, RunDir]
) -> None:
    shown = shell.run("show", "digits", *SHORT, "--backend", "slurm")
    kept = whole["one node"].all_attempts()[0].script.read_text()
    here, there = str(shell.runs), str(whole["one node"].path.parent)
    assert kept.replace(there, here).strip() in shown

    shell.run("submit", "digits", *SHORT, "--backend", "slurm")
    run = shell.only_run()
    wait_for_end(run)
    script = run.all_attempts()[0].script
    cluster.wait(job_id(run), "COMPLETED")
    by_hand = cluster.sbatch(str(script))  # done already: exits 0 and changes nothing
    cluster.wait(by_hand, "COMPLETED")
    assert [a.id for a in run.all_attempts()] == [f"slurm-{job_id(run)}.0"]
    for path in run.outcome, run.all_attempts()[0].outcome, run.metrics:  # as if it had never run
        path.unlink()
    shutil.rmtree(run.checkpoints)
    by_hand = cluster.sbatch(str(script))
    cluster.wait(by_hand, "COMPLETED", timeout_s=120)
    assert outcome(run).attempt == f"slurm-{by_hand}.0"
    same_as(run, whole["local"])


@pytest.mark.parametrize("name", ["a'; touch owned; #", 'two  "words" $HOME `id`', "100% %j"])
def test_a_hostile_name_changes_nothing(
    tmp_path: Path, environment: tuple[tuple[str, str], ...], cluster: Slurm, name: str
) -> None:
    shell = Shell(tmp_path / name / "runs", env=(*environment, ("HOSTILE", f"{name}\nexit 3")))
    shell.run("submit", "digits", *SHORT, "--set", "train.epochs=1", "--backend", "slurm")
    run = shell.only_run()
    wait_for_end(run)
    assert run.path.parent.parent.name == name and not list(tmp_path.rglob("owned"))
    assert list(run.slurm.glob(f"{job_id(run)}_0_log.out"))
    assert cluster.wait(job_id(run), "COMPLETED")["Restarts"] == "0"


def test_a_refused_job_is_told_in_slurms_words(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("backend: slurm\nslurm: {partition: nowhere}\n")
    printed = shell.run("submit", "digits", "--site", str(site), code=1)
    assert re.search(r"sbatch refused the job:\n.*invalid partition", printed, re.S), printed
    assert "no runs in" in shell.run("status")


def test_a_failing_setup_line_stops_the_job(shell: Shell, cluster: Slurm, tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("backend: slurm\nslurm: {setup: ['false  # module load that fails']}\n")
    shell.run("submit", "digits", *SHORT, "--site", str(site))
    run = shell.only_run()
    assert cluster.wait(job_id(run), "FAILED")["Restarts"] == "0"
    assert not run.metrics.exists()


def test_a_queue_that_does_not_answer_never_looks_empty(
    shell: Shell, cluster: Slurm, tmp_path: Path
) -> None:
    cluster.run("scontrol", "update", "partition=main", "state=down")
    try:
        shell.run("submit", "digits", *SHORT, "--backend", "slurm")
        broken = tmp_path / "bin" / "squeue"
        broken.parent.mkdir()
        broken.write_text(
            "#!/bin/sh\necho 'slurm_load_jobs error: Unable to contact slurm controller'"
            " >&2\nexit 1\n"
        )
        broken.chmod(0o755)
        path = f"{broken.parent}:{dict(shell.env)['PATH']}"
        deaf = Shell(shell.runs, env=(*shell.env, ("PATH", path)))
        for words in (("submit", "digits", *SHORT, "--backend", "slurm"), ("cancel", "digits")):
            assert "Unable to contact slurm controller" in deaf.run(*words, code=1)
        known = deaf.run("status")
        assert "unknown" in known and "Unable to contact slurm controller" in known
        shell.run("cancel", "digits")
    finally:
        cluster.run("scontrol", "update", "partition=main", "state=up")
