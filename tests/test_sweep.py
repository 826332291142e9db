"""Sweeps: which points there are, what a submit has to do for each, and a night of them as a person
types it.
"""

from __future__ import annotations

import math
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.runs import sweep_records
from launch.spec import load as spec
from launch.spec import sweep
from launch.spec.job import Job, Loaded
from launch.spec.sweep import Point, Range, Sweep
from launch.spec.yaml_tree import SpecError
from launch.sweeps import reconcile
from tests.cli import SHORT, Shell, finish, outcome, step_reached, wait_for
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.lock import Lock, me
from trainer.config.run import RunConfig

CASES = Path(__file__).parent / "cases"
LR, SEED, WIDTH = "train.optimizer.lr", "train.seed", "train.model.width"
JOB = """
train:
  epochs: 2
  global_batch_size: 64
  data: {name: digits}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd}
resources: {cpus_per_task: 1}
tracking: {mode: disabled}
"""


def points(**written: Any) -> list[dict[str, Any]]:
    return [p.axes for p in sweep.points(Sweep.model_validate(written))]


def test_a_grid_is_every_combination_the_last_axis_fastest() -> None:
    found = points(grid={LR: [0.1, 0.2], SEED: [0, 1], WIDTH: [8]})
    assert [tuple(p.values()) for p in found] == [
        (0.1, 0, 8),
        (0.1, 1, 8),
        (0.2, 0, 8),
        (0.2, 1, 8),
    ]
    assert list(found[0]) == [LR, SEED, WIDTH]


def test_each_draw_comes_with_each_grid_point() -> None:
    ranges = {LR: {"low": 1e-3, "high": 1e-1, "log": True}}
    alone = points(random={"n": 3, "ranges": ranges})
    both = points(random={"n": 3, "ranges": ranges}, grid={SEED: [0, 1]})
    assert [p[LR] for p in both] == [p[LR] for p in alone for _ in (0, 1)] and [
        p[SEED] for p in both
    ] == [0, 1] * 3


def test_draws_are_frozen() -> None:
    ranges = {LR: {"low": 1e-3, "high": 1e-1, "log": True}, WIDTH: {"low": 8, "high": 64}}
    found = points(random={"n": 4, "seed": 0, "ranges": ranges})
    # held: the same job makes the same points, and so the same run_ids, in every later version
    assert [tuple(p.values()) for p in found] == FROZEN
    more = points(random={"n": 6, "seed": 0, "ranges": {**ranges, SEED: {"low": 0, "high": 9}}})
    # more draws and more axes leave the first ones alone
    assert [(p[LR], p[WIDTH]) for p in more[:4]] == FROZEN
    assert points(random={"n": 4, "seed": 1, "ranges": ranges}) != found


FROZEN = [(0.03716, 38), (0.01055, 21), (0.08489, 37), (0.03181, 29)]


def test_draws_stay_within_their_range_and_fill_it() -> None:
    whole = Counter(sweep.draw(Range(low=3, high=6), 0, i, WIDTH) for i in range(4000))
    assert sorted(whole) == [3, 4, 5, 6] and all(type(v) is int for v in whole)
    assert all(abs(count - 1000) < 150 for count in whole.values())
    logs = [
        math.log10(sweep.draw(Range(low=1e-4, high=1.0, log=True), 0, i, LR)) for i in range(4000)
    ]
    assert all(-4 <= v <= 0 for v in logs)
    decades = Counter(math.floor(v) for v in logs)
    assert all(abs(decades[d] - 1000) < 150 for d in (-4, -3, -2, -1))
    log_whole = Counter(sweep.draw(Range(low=1, high=8, log=True), 0, i, LR) for i in range(4000))
    assert sorted(log_whole) == list(range(1, 9)) and log_whole[1] > 3 * log_whole[8]
    assert {sweep.draw(Range(low=0.3, high=0.3), 0, i, LR) for i in range(9)} == {0.3}


def load(path: Path, *settings: str, without_gpu: bool = False) -> Loaded:
    return spec.load_points(Job(path.stem, path), settings, without_gpu=without_gpu)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "lrs.yaml"
    path.write_text(JOB + f"sweep: {{grid: {{{LR}: [0.1, 0.2], {SEED}: [0, 1]}}}}\n")
    return path


def test_a_point_is_the_run_that_set_would_make(job: Path) -> None:
    found = load(job)
    assert [str(p) for p in found.points][:2] == [f"{LR}=0.1 {SEED}=0", f"{LR}=0.1 {SEED}=1"]
    for point, of_point in zip(found.points, found.specs, strict=True):
        alone = load(job, "sweep=null", *str(point).split())
        assert not alone.is_sweep and alone.specs[0].train.digest() == of_point.train.digest()
        assert of_point.sweep is None


def test_a_sweep_can_be_typed_extended_and_left_out(job: Path, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(
        f"extends: lrs\nsweep: {{grid: {{{SEED}: [2], train.epochs: [3, 4]}}}}\n"
    )
    more = load(tmp_path / "more.yaml").points
    assert [tuple(p.axes.values()) for p in more] == [
        (0.1, 2, 3),
        (0.1, 2, 4),
        (0.2, 2, 3),
        (0.2, 2, 4),
    ]
    typed = load(CASES / "five_right.yaml", f"sweep.grid.{SEED}=[0, 1, 2]")
    assert [s.train.seed for s in typed.specs] == [0, 1, 2]
    assert len(load(job, f"sweep.grid.{SEED}=[7]").points) == 2
    with pytest.raises(SpecError, match=r"train\.optimizer\.lr: is missing"):
        load(job, "sweep=null")  # only the sweep gives one


def test_axes_lie_above_the_fallback(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        JOB + f"fallback: {{train: {{epochs: 1, optimizer: {{lr: 0.5}}}}}}\nsweep: {{grid: {{{LR}:"
        " [0.1, 0.2]}}\n"
    )
    found = load(path, without_gpu=True)
    assert [(s.train.epochs, s.train.optimizer.lr) for s in found.specs] == [(1, 0.1), (1, 0.2)]


@pytest.mark.parametrize(
    "option", [f"{LR}=0.3", "train.optimizer={name: sgd, lr: 0.3}", "train.seed=1"]
)
def test_set_on_an_axis_is_a_mistake(job: Path, option: str) -> None:
    axis = SEED if "seed" in option else LR
    with pytest.raises(SpecError) as caught:
        load(job, option)
    line = (
        f"--set {option}: {axis}: is an axis of the sweep (sweep.grid): change its values, or --set"
        " sweep=null"
    )
    assert line in str(caught.value)


def test_mappings_can_be_an_axis(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        JOB + "sweep: {grid: {train.optimizer: [{lr: 0.1}, {name: adam, lr: 0.001}]}}\n"
    )
    assert [(s.train.optimizer.name, s.train.optimizer.lr) for s in load(path).specs] == [
        ("sgd", 0.1),
        ("adam", 0.001),
    ]


def test_what_a_submit_has_to_do() -> None:
    axes = [{LR: v} for v in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)]
    runs = [(Point(a), f"r{i}") for i, a in enumerate(axes)]
    states = {"r0": "completed", "r1": "failed", "r2": "cancelled", "r3": "running", "r4": "dead"}
    before = [
        (axes[0], "r0"),
        (axes[1], "old"),
        (axes[1], "r1"),
        ({LR: 9}, "gone"),
        (axes[5], "older"),
        ({LR: 9}, "went"),
    ]
    found = reconcile.reconcile(runs, states, before)
    assert [w.progress for w in found.wanted] == [
        "done",
        "failed",
        "stopped",
        "running",
        "failed",
        "missing",
    ]
    assert [w.to_run for w in found.wanted] == [False, True, True, False, True, True]
    # changed: the same values, another run
    assert [w.before for w in found.wanted] == [None, None, None, None, None, "older"]
    assert found.unwanted == [({LR: 9}, "went")]
    assert {k: v for k, v in found.count().items() if v} == {
        "done": 1,
        "missing": 1,
        "failed": 2,
        "stopped": 1,
        "running": 1,
    }


def test_every_state_of_a_run_means_something_for_a_sweep() -> None:
    from typing import get_args

    from launch.runs.state import State

    assert set(reconcile.PROGRESS) == set(get_args(State))


def test_the_sweeps_id_changes_no_run_id(tmp_path: Path) -> None:
    train = load(CASES / "five_right.yaml").specs[0].train
    execution = {"ranks": 1, "threads_per_rank": 1, "device": "cpu"}
    config = RunConfig.model_validate(
        {"job": "x", "run_id": "x-0", "sweep": "x.sweep", "train": train, "execution": execution}
    )
    assert config.train.digest() == train.digest()
    assert (
        RunConfig.model_validate(
            {k: v for k, v in config.model_dump().items() if k != "sweep"}
        ).sweep
        is None
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def shell(tmp_path: Path, cache: str) -> Shell:
    return Shell(tmp_path / "runs", cwd=tmp_path, env=(("XDG_CACHE_HOME", cache),))


def run_ids(shell: Shell, name: str) -> list[str]:
    return [p["run_id"] for p in sweep_records.submits(SweepDir(shell.runs / name))[-1]["points"]]


def attempts(shell: Shell, run_id: str) -> list[str]:
    return [a.id for a in RunDir(shell.runs / run_id).all_attempts()]


def test_names_of_sweeps_and_of_runs(shell: Shell) -> None:
    def run(run_id: str) -> None:
        (shell.runs / run_id).mkdir(parents=True, exist_ok=True)
        (shell.runs / run_id / "config.json").write_text("{}")

    first = sweep_records.sweep_for("lrs", shell.runs, new=False)
    assert first.sweep_id == "lrs.sweep" and sweep_records.find("lrs", shell.runs) is None
    run("lrs-00000001")
    sweep_records.begin(first, "lrs", "local", (), [{"axes": {LR: 0.1}, "run_id": "lrs-00000001"}])
    second = sweep_records.sweep_for("lrs", shell.runs, new=True)
    assert (
        second.sweep_id == "lrs.sweep.2"
        and sweep_records.sweep_for("lrs", shell.runs, new=False) == first
    )
    assert (
        sweep_records.find("lrs", shell.runs)
        == sweep_records.find("lrs.sweep", shell.runs)
        == first
    )
    assert (
        sweep_records.run_of("lrs.sweep", shell.runs).run_id
        == sweep_records.run_of("lrs", shell.runs).run_id
        == "lrs-00000001"
    )
    run("lrs-00000002")  # submitted by itself, later: the job's name is that run's
    assert (
        sweep_records.find("lrs", shell.runs) is None
        and sweep_records.find("lrs-00000001", shell.runs) is None
    )
    assert sweep_records.find("lrs.sweep", shell.runs) == first


def test_a_cancel_counts_for_the_submits_before_it(shell: Shell) -> None:
    here = SweepDir(shell.runs / "lrs.sweep")
    submit = sweep_records.begin(here, "lrs", "local", (), [])
    assert sweep_records.is_submitted(here) and not sweep_records.cancelled(here, submit)
    printed = shell.run("cancel", "lrs.sweep")
    assert printed == "lrs.sweep: no further point begins\n"
    assert sweep_records.cancelled(here, submit)
    later = sweep_records.begin(here, "lrs", "local", (), [])
    assert not sweep_records.cancelled(here, later)
    for each in (submit, later):
        sweep_records.change(here, "lrs", {**each, "ended": each["started"]})
    assert "lrs.sweep does not run, nothing to cancel" in shell.run("cancel", "lrs.sweep", code=2)
    # its pid is another process's by now
    dead = {**sweep_records.begin(here, "lrs", "local", (), []), "start": 0}
    assert me()["pid"] == dead["pid"]
    sweep_records.change(here, "lrs", dead)
    assert not sweep_records.is_submitted(here)


def test_show_and_check_tell_every_point(job: Path, shell: Shell) -> None:
    assert shell.run("check", "lrs.yaml") == "lrs.yaml: right, 4 points\n"
    printed = shell.run("show", "lrs.yaml")
    assert "lrs.sweep: 4 points: 4 missing" in printed
    for point, of_point in zip(load(job).points, load(job).specs, strict=True):
        lr, seed = point.axes.values()
        assert f"{lr}     {seed}  missing  lrs-{of_point.train.digest()[:8]}" in printed
    assert f"the first point, {LR}=0.1 {SEED}=0:" in printed and "torch.distributed.run" in printed
    assert not shell.runs.exists()


@pytest.mark.long
def test_one_that_fails_and_one_that_cannot_start_stop_no_other(job: Path, shell: Shell) -> None:
    job.write_text(JOB + f"sweep: {{grid: {{{LR}: [0.1, 1e30, 0.2]}}}}\n")
    cannot, nan, good = (f"lrs-{s.train.digest()[:8]}" for s in load(job).specs)
    blocked = shell.runs / cannot / "attempts"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder belongs")
    printed = shell.run("submit", "lrs.yaml", code=1)
    assert "lrs.sweep: 3 points: 3 missing" in printed and "[3/3, about" in printed
    assert (
        f"batchyard: {cannot}: [Errno 20] Not a directory" in printed
        and f"{good} completed: test accuracy" in printed
    )
    table = printed[printed.index("   lr  state") :]
    assert [line.split()[:2] for line in table.splitlines()[1:4]] == [
        ["0.1", "new"],
        ["1e+30", "failed"],
        ["0.2", "completed"],
    ]
    assert (
        f"1 point could not start: [Errno 20] Not a directory: '{blocked}/local-1'\n  lr=0.1"
        f" ({cannot})" in table
    )
    assert "1 point failed: the gradient of step 2 is not finite" in table
    assert f"best: lr=0.2 ({good}), chosen by the last test" in table
    assert "batchyard submit lrs.sweep tries the failed points again" in table
    page = (shell.runs / "lrs.sweep" / "report.html").read_text()
    assert (
        f'<a href="../{good}/report.html">{good}</a>' in page
        and "could not start: [Errno 20]" in page
    )
    assert read_json(RunDir(shell.runs / good).config)["sweep"] == "lrs.sweep"

    # next morning: the blocked run's directory is removed, the rate that is too large left out
    shutil.rmtree(blocked.parent)
    job.write_text(JOB + f"sweep: {{grid: {{{LR}: [0.1, 0.2]}}}}\n")
    status = shell.run("status", "lrs")
    assert "lrs.sweep: 3 points: 1 new, 1 failed, 1 completed" in status
    assert re.search(rf"0\.1 +new +-/\? +- +- +{cannot}", status)
    with held(shell, cannot):
        printed = shell.run("submit", "lrs.yaml")
        assert "lrs.sweep: 2 points: 1 done, 1 running" in printed and "[1/" not in printed
        assert f"passed over  lr=0.1  {cannot} runs already" in printed
    printed = shell.run("submit", "lrs.yaml")
    assert (
        "lrs.sweep: 2 points: 1 done, 1 missing" in printed
        and "[1/1] lr=0.1" in printed
        and "could not start" not in printed
    )
    assert f"not wanted   lr=1e+30  {nan} is left as it is" in printed
    assert [attempts(shell, r) for r in (cannot, nan, good)] == [["local-1"]] * 3


@contextmanager
def held(shell: Shell, run_id: str) -> Iterator[None]:
    """As if this very process ran that run."""
    run = RunDir(shell.runs / run_id)
    run.path.mkdir()
    lock = Lock(run.lock)
    assert lock.acquire(attempt="local-9")
    yield
    lock.release()


def first_run(shell: Shell, process: Any, run_id: str, step: int) -> RunDir:
    run = RunDir(shell.runs / run_id)
    wait_for(
        f"step {step} of {run_id}", lambda: process.poll() is not None or step_reached(run, step)()
    )
    return run


@pytest.mark.long
def test_cancel_and_ctrl_c_begin_no_further_point_and_submit_continues(shell: Shell) -> None:
    process = shell.start("submit", "digits", *SHORT, "--set", f"sweep.grid.{SEED}=[0, 1, 2]")
    wait_for(
        "the sweep",
        lambda: process.poll() is not None or list(shell.runs.glob("digits.sweep/sweep.json")),
    )
    zero, one, two = run_ids(shell, "digits.sweep")
    run = first_run(shell, process, zero, 10)
    assert f"{zero} (local-1 on" in shell.run("cancel", "digits.sweep")
    printed = finish(process, code=75)
    assert "digits.sweep: 3 points: 3 missing" in printed and "[2/3" not in printed
    assert "batchyard submit digits.sweep continues it" in printed
    assert outcome(run).verdict == "cancelled" and attempts(shell, one) == []

    process = shell.start("submit", "digits.sweep")  # by its id: by the job as it was resolved
    first_run(shell, process, one, 5)
    process.send_signal(signal.SIGINT)
    printed = finish(process, code=75)
    assert "digits.sweep: 3 points: 2 missing, 1 stopped" in printed and "[3/3" not in printed
    assert f"continued    seed=0  {zero} was stopped" in printed
    assert "stopping after a checkpoint" in printed and outcome(run).status == "completed"
    assert [attempts(shell, r) for r in (zero, one, two)] == [
        ["local-1", "local-2"],
        ["local-1"],
        [],
    ]
    assert f"{one} local-1" in shell.run("logs", "digits.sweep")
    assert "digits.sweep: 3 points: 1 done, 1 missing, 1 stopped" in shell.run(
        "show", "digits.sweep"
    )


def test_term_between_two_points_stops_before_the_next(
    job: Path, shell: Shell, tmp_path: Path
) -> None:
    waits = tmp_path / "waits"
    python = tmp_path / "python"  # prepares the data for ever
    prepare = f'case "$*" in *trainer.tools.prepare*) touch {waits}; exec sleep 300;; esac'
    python.write_text(f'#!/bin/sh\n{prepare}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "site.yaml").write_text(f"python: {python}\n")
    process = shell.start("submit", "lrs.yaml", "--site", "site.yaml")
    wait_for("the first point's data", lambda: process.poll() is not None or waits.exists())
    process.terminate()
    printed = finish(process, code=75)
    assert "stopped between two points" in printed and "[2/4" not in printed
    assert "batchyard submit lrs.sweep continues it" in printed
    assert "lrs.sweep does not run, nothing to cancel" in shell.run("cancel", "lrs", code=2)


def test_new_begins_a_sweep_of_new_runs_and_its_id_goes_on_with_it(job: Path, shell: Shell) -> None:
    runs = [f"lrs-{s.train.digest()[:8]}" for s in load(job).specs]
    (shell.runs / runs[0]).mkdir(parents=True)
    sweep_records.begin(SweepDir(shell.runs / "lrs.sweep"), "lrs", "local", (), [])
    shown = shell.run("show", "lrs.yaml", "--new")
    assert "lrs.sweep.2: 4 points: 4 missing" in shown
    # the second has no run yet
    assert f"missing  {runs[0]}.2" in shown and f"missing  {runs[1]}\n" in shown

    second = SweepDir(shell.runs / "lrs.sweep.2")
    recorded = [
        {"axes": p.axes, "run_id": f"{r}.2"} for p, r in zip(load(job).points, runs, strict=True)
    ]
    sweep_records.begin(second, "lrs", "local", (), recorded)
    second.job.write_text(job.read_text())
    shown = shell.run("show", "lrs.sweep.2")
    assert all(f"missing  {r}.2" in shown for r in runs) and "changed" not in shown
    assert f"missing  {runs[0]} " in shell.run("show", "lrs.yaml").replace("\n", " ")

    shown = shell.run("show", "lrs.sweep.2", "--set", "train.epochs=3")
    assert "changed      lr=0.1 seed=0  " in shown and f", was {runs[0]}.2" in shown
