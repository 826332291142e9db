"""`after` on a real cluster: the second job waits behind the first, and never waits for ever."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli import Shell, step_reached, wait_for
from tests.slurm.conftest import Slurm
from tests.slurm.test_digits import job_id, wait_for_end
from tests.test_after import TINY, run_of
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir


@pytest.fixture
def finetune(tmp_path: Path) -> str:
    """The path of a job that comes after another one, which takes some seconds."""
    longer = (
        TINY.replace("SEED", "0")
        .replace("max_steps: 2", "max_steps: 4000")
        .replace("epochs: 1", "epochs: 400")
    )
    (tmp_path / "pretrain.yaml").write_text(longer + "execution: {log_every_steps: 5}\n")
    (tmp_path / "finetune.yaml").write_text(TINY.replace("SEED", "1") + "after: pretrain\n")
    return str(tmp_path / "finetune.yaml")


def both(shell: Shell, finetune: str, *options: str) -> tuple[RunDir, RunDir]:
    printed = shell.run("submit", finetune, "--backend", "slurm", *options)
    assert "finetune comes after pretrain:" in printed and printed.count("queued as Slurm job") == 2
    return run_of(shell, "pretrain"), run_of(shell, "finetune")


def test_the_second_job_waits_for_the_first_through_its_requeues(
    shell: Shell, cluster: Slurm, finetune: str
) -> None:
    first, second = both(shell, finetune)
    waiting = cluster.squeue(job_id(second))
    assert (
        waiting["dependency"].startswith(f"afterok:{job_id(first)}")
        and waiting["reason"] == "Dependency"
    )
    assert "--kill-on-invalid-dep=yes" in read_script(second)
    assert "it waits for another job (Dependency)" in shell.run("why", second.run_id)
    wait_for("step 10", step_reached(first, 10))
    cluster.run("scancel", "--signal=USR2", job_id(first))
    wait_for_end(second)
    assert len(first.all_attempts()) == 2 and len(second.all_attempts()) == 1
    assert (
        read_json(second.all_attempts()[0].record)["started"]
        > read_json(first.all_attempts()[1].record)["ended"]
    )


def test_a_job_behind_one_that_is_cancelled_leaves_the_queue_and_why_says_so(
    shell: Shell, cluster: Slurm, finetune: str
) -> None:
    first, second = both(shell, finetune)
    wait_for("step 10", step_reached(first, 10))
    shell.run("cancel", first.run_id)
    wait_for(
        "the queue without both",
        lambda: not cluster.squeue(job_id(second)) and not cluster.squeue(job_id(first)),
    )
    assert (
        shell.run("why", second.run_id).splitlines()[0]
        == f"{second.run_id} was never begun: {first.run_id}, which comes before it, is stopped"
        " (cancelled)"
    )
    assert shell.run("submit", finetune, "--backend", "slurm").count("queued as Slurm job") == 2
    wait_for_end(second)
    assert len(first.all_attempts()) == 2


def test_the_weights_of_the_first_job_are_what_the_second_begins_with(
    shell: Shell, cluster: Slurm, finetune: str
) -> None:
    with Path(finetune).open("w") as file:
        file.write(
            TINY.replace("SEED", "1").replace(
                "train:\n", "train:\n  weights: {run: pretrain, head: loaded}\n"
            )
        )
    first, second = both(shell, finetune)
    assert cluster.squeue(job_id(second))["reason"] == "Dependency"
    wait_for("step 10", step_reached(first, 10))
    # it goes on, and only its end is what the second takes
    cluster.run("scancel", "--signal=USR2", job_id(first))
    wait_for_end(second)
    end = f"step-4000.slurm-{job_id(first)}.1"
    assert (
        f"begins with the weights of {first.run_id} ({end})"
        in second.all_attempts()[0].rank_log(0).read_text()
    )
    assert read_json(second.config)["train"]["weights"]["run"] == first.run_id


@pytest.mark.long
def test_where_nothing_is_requeued_it_waits_for_the_follower(
    shell: Shell, cluster: Slurm, finetune: str, tmp_path: Path
) -> None:
    (tmp_path / "site.yaml").write_text("backend: slurm\nslurm: {requeue: false}\n")
    first, second = both(shell, finetune, "--site", str(tmp_path / "site.yaml"))
    assert cluster.squeue(job_id(second))["dependency"].startswith(f"afterany:{job_id(first)}")
    wait_for("step 10", step_reached(first, 10))
    cluster.run("scancel", "--signal=USR2", job_id(first))
    wait_for_end(second)
    assert len(first.all_attempts()) == 2 and read_json(first.slurm_job)["follows"]
    assert (
        read_json(second.slurm_job)["follows"] and len(read_json(second.slurm_job)["follows"]) == 1
    )


def read_script(run: RunDir) -> str:
    return run.all_attempts()[0].script.read_text()
