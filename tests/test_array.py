"""A job array's listing: what a point that waits lacks is written when it begins, and until then
read from there.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.backends import slurm
from launch.console import status
from launch.runs import array_listing, state
from launch.runs.array_listing import Task
from launch.spec import load
from launch.spec.job import Job
from launch.submit import write
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir, SweepDir

PROJECT = Path(__file__).resolve().parents[1]
CODE: dict[str, Any] = {"root": "/somewhere/code", "record": {"sha256": "c0de"}}
DATA = [{"sha256": "d0"}, {"sha256": "d1"}]


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDir:
    sweep = SweepDir(tmp_path / "runs/a.sweep")
    sweep.slurm.mkdir(parents=True)
    return sweep


def points(sweep: SweepDir, *numbers: int, begun: bool = False) -> list[Task]:
    """Points that have never begun; begun: that have."""
    tasks = []
    for number in numbers:
        run = sweep.run(f"a-{number:08x}")
        write_json(run.config, {"job": "a", "sweep": sweep.sweep_id})
        if begun:
            write_json(run.plan, {"run_id": run.run_id})
        waiting = {
            "job": f"train:\n  seed: {number}\n",
            "plan": {"run_id": run.run_id},
            "data": number % 2,
        }
        tasks.append(Task(run, None if begun else waiting))
    return tasks


def queue(sweep: SweepDir, tasks: list[Task], job: str) -> tuple[Path, list[tuple[RunDir, str]]]:
    listing = array_listing.write(sweep, tasks, f"srun {tasks[0].run.run_id}", CODE, DATA)
    return listing, list(array_listing.queued(listing, job))


def test_the_first_node_makes_the_directory_whole(sweep: SweepDir) -> None:
    listing, known = queue(sweep, points(sweep, 0, 1), "7")
    run = sweep.run("a-00000001")
    assert known == [] and [p.name for p in run.path.iterdir()] == ["config.json"]
    assert array_listing.begin(listing, 1, "7_1", first_node=False) == (run, "srun a-00000001")
    assert [p.name for p in run.path.iterdir()] == ["config.json"]
    array_listing.begin(listing, 1, "7_1", first_node=True)
    assert yaml.safe_load(run.job.read_text()) == {"train": {"seed": 1}} and read_json(
        run.plan
    ) == {"run_id": run.run_id}
    assert read_json(run.data_record) == DATA[1] and read_json(run.code_record) == CODE["record"]
    assert str(run.code.readlink()) == CODE["root"]
    assert read_json(run.slurm_job) == {"job_id": "7_1", "logs": str(sweep.slurm)}
    write_json(run.slurm_job, {"job_id": "9", "logs": "", "follows": ["7_1"]})
    # a requeue finds it whole, and leaves what came since
    array_listing.begin(listing, 1, "7_1", first_node=True)
    assert read_json(run.slurm_job)["job_id"] == "9"


def test_a_start_that_was_killed_on_its_way_is_finished_by_the_next(sweep: SweepDir) -> None:
    listing, _ = queue(sweep, points(sweep, 0), "7")
    array_listing.begin(listing, 0, "7_0", first_node=True)
    run = sweep.run("a-00000000")
    for left in ("a link", "a folder"):  # the second by a submit of this run alone
        run.plan.unlink()  # the last that is written
        run.data_record.unlink()
        run.code.unlink()
        if left == "a link":
            run.code.symlink_to("/elsewhere")
        else:
            (run.code / "trainer").mkdir(parents=True)
        array_listing.begin(listing, 0, "7_0", first_node=True)
        assert (
            read_json(run.plan)
            and read_json(run.data_record) == DATA[0]
            and str(run.code.readlink()) == CODE["root"]
        )


def test_a_run_that_has_begun_has_its_own_record(sweep: SweepDir) -> None:
    (begun,) = points(sweep, 3, begun=True)
    listing, known = queue(sweep, [*points(sweep, 0), begun], "7")
    assert known == [(begun.run, "7_1")]
    found = array_listing.begin(listing, 1, "7_1", first_node=True)
    assert found and found[0] == begun.run and not begun.run.job.exists()
    # it has begun since, and may have a follower
    for own in ({"job_id": "7_1"}, {"job_id": "99", "follows": ["7_1"]}):
        write_json(begun.run.slurm_job, own)
        slurm.queued(begun.run, "7_1", sweep.slurm)
        assert read_json(begun.run.slurm_job) == own
    slurm.queued(begun.run, "100", sweep.slurm)
    assert state.slurm_job(begun.run) == "100"


def test_where_a_waiting_point_stands(sweep: SweepDir) -> None:
    waits, other = (task.run for task in points(sweep, 0, 1))
    assert array_listing.job_of(waits) is None and state.standing(waits, {}).state == "new"
    queue(sweep, points(sweep, 0, 1), "7")
    assert array_listing.job_of(other) == {"job_id": "7_1", "logs": str(sweep.slurm)}
    assert state.slurm_jobs([waits, other])[0] == {waits.run_id: "7_0", other.run_id: "7_1"}
    states = {"7_0": "PENDING (Priority)", "7_1": "PENDING (Priority)"}
    for jobs in (None, state.slurm_jobs([waits, other])[0]):
        where = state.standing(other, states, jobs)
        assert (where.state, where.where) == ("queued", "Slurm job 7_1 PENDING (Priority)")
        assert status.Row.of(other, where).step == "-/?"
        gone = state.standing(other, {}, jobs)
        assert (gone.state, gone.attempt, gone.where) == ("dead", None, "Slurm job 7_1 is gone")
    queue(sweep, points(sweep, 1), "8")  # submitted again
    assert state.slurm_jobs([waits, other])[0] == {waits.run_id: "7_0", other.run_id: "8_0"}
    assert array_listing.job_of(other) == {"job_id": "8_0", "logs": str(sweep.slurm)}
    write_json(other.slurm_job, {"job_id": "9"})  # by itself
    write_json(other.plan, {})
    assert state.slurm_jobs([other])[0] == {other.run_id: "9"}
    assert state.slurm_jobs([other, waits])[0] == {other.run_id: "9", waits.run_id: "7_0"}
    write_json(waits.plan, {})  # begun elsewhere, it waits no longer
    assert state.slurm_jobs([waits])[0] == {} and array_listing.job_of(waits) is None


def test_what_comes_before_a_point_has_begun_does_not_hide_that_it_waits(sweep: SweepDir) -> None:
    (task,) = points(sweep, 0)
    listing, _ = queue(sweep, [task], "7")
    task.run.attempt("slurm-7_0.0").path.mkdir(parents=True)  # by a second node that was quicker
    assert state.standing(task.run, {"7_0": "RUNNING"}).where == "Slurm job 7_0 RUNNING"
    array_listing.begin(listing, 0, "7_0", first_node=True)
    task.run.plan.unlink()  # the disk became full on the way; the point is queued once more
    queue(sweep, [task], "8")
    for runs in ([task.run], [task.run, *(t.run for t in points(sweep, 1))]):
        assert state.slurm_jobs(runs)[0] == {task.run.run_id: "8_0"}


def test_a_listing_that_became_no_job_says_nothing(sweep: SweepDir) -> None:
    tasks = points(sweep, 0, 1)
    array_listing.write(sweep, tasks, "", CODE, DATA)
    assert (
        state.slurm_jobs([t.run for t in tasks])[0] == {}
        and array_listing.job_of(tasks[0].run) is None
    )
    (sweep.slurm / "points-of-another-version.json").write_text(
        '{"runs": ["/runs/a-00000000"], "script": ""}'
    )
    (sweep.slurm / "points-of-an-adopted-one.json").write_text(
        '{"runs": ["/runs/a-00000000"], "script": "", "job_id": "5"}'
    )
    (sweep.slurm / "points-cut.json").write_text('{"runs": [')
    assert (
        state.slurm_jobs([t.run for t in tasks])[0] == {}
        and array_listing.job_of(tasks[0].run) is None
    )


def test_a_task_may_begin_before_its_job_is_recorded(sweep: SweepDir) -> None:
    tasks = points(sweep, 0)
    assert (
        array_listing.begin(
            array_listing.write(sweep, tasks, "", CODE, DATA), 0, "7_0", first_node=True
        )
        and tasks[0].run.plan.exists()
    )


def test_a_removed_point_is_new_and_its_task_leaves_it_to_the_one_that_is_queued_anew(
    sweep: SweepDir,
) -> None:
    (task,) = points(sweep, 0)
    old, _ = queue(sweep, [task], "7")
    task.run.config.unlink()
    write_json(task.run.submit_lock, {})
    assert (
        state.standing(task.run, {"7_0": "PENDING"}, state.slurm_jobs([task.run])[0]).state == "new"
    )
    assert array_listing.begin(old, 0, "7_0", first_node=True) is None and [
        p.name for p in task.run.path.iterdir()
    ] == ["submit-lock.json"]
    new, _ = queue(sweep, points(sweep, 0), "8")
    os.utime(old.with_suffix(".jsonl"), (time.time() - 60,) * 2)
    list(array_listing.queued(old, "7"))  # adopted late, it is no newer
    assert (
        array_listing.begin(old, 0, "7_0", first_node=True) is None and not task.run.plan.exists()
    )
    assert (
        array_listing.begin(new, 0, "8_0", first_node=True) and state.slurm_job(task.run) == "8_0"
    )
    # finds the run held or done, as every start does
    begun = array_listing.begin(old, 0, "7_0", first_node=True)
    assert begun and begun[0] == task.run and state.slurm_job(task.run) == "8_0"


def test_the_job_of_a_waiting_point_can_be_had(sweep: SweepDir) -> None:
    run = points(sweep, 0, 5)[1].run
    assert array_listing.job_text(run) is None  # never queued
    array_listing.write(sweep, points(sweep, 0, 5), "", CODE, DATA)  # Slurm refused it
    assert array_listing.job_text(run) == "train:\n  seed: 5\n"
    begun = points(sweep, 5, begun=True)
    assert array_listing.job_text(run) is None
    run.plan.unlink()
    array_listing.write(sweep, begun, "", CODE, DATA)
    assert array_listing.job_text(run) is None  # it had begun when that was written


@pytest.mark.parametrize(
    "path", sorted((PROJECT / "jobs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_a_job_is_written_key_by_key_as_it_would_be_at_once(path: Path) -> None:
    for made in load.load_points(Job(path.stem, path), (), without_gpu=True).specs[:3]:
        whole = made.model_dump(mode="json", exclude_unset=True, exclude={"after", "published"})
        assert write.job_text(made) == yaml.dump(whole, Dumper=write.DUMPER, sort_keys=False)
