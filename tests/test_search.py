"""A search: its decisions are optuna's, a pruned trial can be taken up again, trials are begun
once, as a person types it.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from launch import environment
from launch.cli import options
from launch.runs import sweep_records
from launch.submit import request as submit
from launch.submit.request import Ready, Request
from launch.sweeps import search
from launch.sweeps.search import Searched
from tests import ranks
from tests.cli import Shell, finish, outcome, step_reached, wait_for
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.outcome import Outcome
from trainer.config.files.study import Halving, Trial, open_study
from trainer.datasets.prepare import prepare
from trainer.search import Judge

LR = "train.optimizer.lr"
JOB = """
train:
  epochs: 4
  global_batch_size: 64
  data: {name: digits, validation: 0.2}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd}
resources: {cpus_per_task: 1}
tracking: {mode: disabled}
sweep:
  search:
    trials: 16
    sampler: SAMPLER
    ranges: {train.optimizer.lr: {low: 0.001, high: 1.0, log: true}, train.seed: {low: 0, high: 9}}
    choices: {train.schedule: [{name: constant}, {name: cosine}]}
    halving: {min_epochs: 1, reduction_factor: 2}
"""


RANGES, CHOICES = (
    line.partition(": ")[2]
    for line in JOB.splitlines()
    if line.strip().startswith(("ranges:", "choices:"))
)


def judge(runs: Path, number: int, halving: Halving, metric: str) -> Judge:
    """The judge of a trial, whose study is in runs/t.sweep."""
    config = ranks.config(f"t-{number:08}", best_metric=metric)
    trial = Trial(study="s", number=number, halving=halving)
    return Judge(
        config.model_copy(update={"sweep": "t.sweep", "trial": trial}), RunDir(runs / config.run_id)
    )


@pytest.mark.parametrize(
    ("metric", "halving"),
    [
        ("accuracy", Halving(min_epochs=1, reduction_factor=2)),
        ("loss", Halving(min_epochs=2, reduction_factor=3)),
    ],
)
def test_the_decisions_are_those_of_optuna_on_the_same_values(
    tmp_path: Path, metric: str, halving: Halving
) -> None:
    draw, epochs = random.Random(0), 9
    (tmp_path / "t.sweep").mkdir()
    journal = open_study(SweepDir(tmp_path / "t.sweep").journal, "s", metric, halving)
    pruner = optuna.pruners.SuccessiveHalvingPruner(
        min_resource=halving.min_epochs, reduction_factor=halving.reduction_factor
    )
    memory = optuna.create_study(
        direction="minimize" if metric == "loss" else "maximize", pruner=pruner
    )
    running: list[tuple[Judge, optuna.Trial, int]] = []
    ends: list[int] = []
    while len(journal.get_trials()) < 16 or running:
        if len(running) < 4 and len(journal.get_trials()) < 16:  # four at once, in no order
            number = journal.ask().number
            running.append((judge(tmp_path, number, halving, metric), memory.ask(), 0))
        asks, theirs, epoch = running.pop(draw.randrange(len(running)))
        epoch, value = (
            epoch + 1,
            (float("nan") if draw.random() < 0.02 else draw.random() + 0.1 * epoch),
        )
        theirs.report(value, epoch)
        expected, over = theirs.should_prune(), epoch == epochs
        assert asks.is_losing(epoch, value if value == value else None, over=over) == (
            expected and not over
        )
        if expected or over:
            memory.tell(
                theirs,
                value if over and value == value else None,
                state=None if over else TrialState.PRUNED,
            )
            ends.append(epoch)
        else:
            running.append((asks, theirs, epoch))
    assert len(set(ends)) > 2 and epochs in ends  # there was something to decide
    for ours, its in zip(journal.get_trials(), memory.get_trials(), strict=True):
        assert str(ours.intermediate_values) == str(its.intermediate_values)  # a nan is no nan
        assert (ours.state == TrialState.PRUNED) == (its.state == TrialState.PRUNED)


def test_a_trial_that_comes_to_an_epoch_again_gets_the_first_answer(tmp_path: Path) -> None:
    (tmp_path / "t.sweep").mkdir()
    halving = Halving(min_epochs=1, reduction_factor=2)
    journal = open_study(SweepDir(tmp_path / "t.sweep").journal, "s", "accuracy", halving)
    for _ in range(3):
        journal.ask()
    good, bad, better = (judge(tmp_path, n, halving, "accuracy") for n in range(3))
    assert [good.is_losing(1, 0.8, over=False), bad.is_losing(1, 0.5, over=False)] == [False, True]
    assert better.is_losing(1, 0.9, over=False) is False
    again = [
        judge(tmp_path, n, halving, "accuracy").is_losing(1, v, over=False)
        for n, v in ((0, 0.8), (1, 0.5))
    ]
    assert again == [False, True]
    assert journal.get_trials()[1].value == 0.5


def test_a_spoilt_journal_stops_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = SweepDir(tmp_path / "t.sweep").journal
    path.parent.mkdir()
    halving = Halving()
    open_study(path, "s", "accuracy", halving).ask()
    path.write_bytes(path.read_bytes() + b"half a li\n{}\n")
    assert judge(tmp_path, 0, halving, "accuracy").is_losing(1, 0.0, over=False) is False
    assert (
        f"the search's journal {path} does not answer, so this trial goes on"
        in capsys.readouterr().out
    )


def test_a_pruned_trial_taken_up_again_is_the_undisturbed_run(tmp_path: Path) -> None:
    world_size = 2
    train: dict[str, Any] = {"data": {**ranks.DIGITS, "validation": 0.2}, "epochs": 3}
    config = ranks.config(ranks=world_size, **train)
    prepared = prepare(config.train.data, tmp_path / "cache", tmp_path / "cache")
    whole = ranks.make_run(tmp_path / "whole", config, prepared)
    assert ranks.train(whole, "local-1", world_size) == 0, ranks.logs(whole)

    runs, halving = tmp_path / "runs", Halving(min_epochs=2, reduction_factor=2)
    (runs / "t.sweep").mkdir(parents=True)
    journal = open_study(SweepDir(runs / "t.sweep").journal, "s", "accuracy", halving)
    journal.ask()
    # one that nobody beats
    assert judge(runs, 0, halving, "accuracy").is_losing(2, 1.0, over=False) is False
    place = Trial(study="s", number=journal.ask().number, halving=halving)
    run = ranks.make_run(
        runs, config.model_copy(update={"sweep": "t.sweep", "trial": place}), prepared
    )
    assert ranks.train(run, "local-1", world_size) == 0, ranks.logs(run)
    end = read_json(run.attempt("local-1").outcome)
    # 1,150 pictures, 100 a step
    assert (end["status"], end["verdict"], end["global_step"]) == ("stopped", "pruned", 24)
    assert (
        "after epoch 2 it was not among the best 1/2 of its search's trials that came so far"
        in end["cause"]
    )
    evaluations = {row["epoch"]: row["accuracy"] for row in rows(run)}
    assert journal.get_trials()[1].intermediate_values == evaluations and list(evaluations) == [
        1,
        2,
    ]
    assert journal.get_trials()[1].state == TrialState.PRUNED

    write_json(run.config, config.model_copy(update={"sweep": "t.sweep"}).model_dump(mode="json"))
    assert ranks.train(run, "local-2", world_size) == 0, ranks.logs(run)
    expected, found = (
        read_json(r.attempt(a).outcome) for r, a in ((whole, "local-1"), (run, "local-2"))
    )
    assert found["status"] == "completed" and found["weights_sha256"] == expected["weights_sha256"]
    assert (
        found["extra"] == expected["extra"]
        and run.metrics.read_bytes() == whole.metrics.read_bytes()
    )
    assert not run.attempt("local-2").discarded.exists()


def rows(run: RunDir) -> list[dict[str, Any]]:
    """The evaluations of the validation split."""
    return [
        row
        for line in run.metrics.read_text().splitlines()
        if (row := json.loads(line)).get("split") == "val"
    ]


def asked(
    folder: Path, sampler: str = "random", *, seed: int = 0, choices: str = "", ranges: str = ""
) -> tuple[Searched, Request]:
    """A search that has been submitted, and has begun no trial."""
    folder.mkdir(exist_ok=True)
    job = folder / "s.yaml"
    text = JOB.replace("SAMPLER", f"{sampler}\n    seed: {seed}")
    for old, new in ((CHOICES, choices), (RANGES, ranges)):
        text = text.replace(old, new or old)
    job.write_text(text)
    given = options.JobOptions(str(job), runs_dir=folder / "runs", backend="local")
    request, _ = options.request(given)
    loaded, _ = submit.load(request)
    of = search.searched(SweepDir(folder / "runs" / "s.sweep"), loaded)
    of.sweep.path.mkdir(parents=True)
    of.sweep.job.write_text(job.read_text())
    sweep_records.begin(of.sweep, "s", "local", (), [])
    return of, request


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_trials_are_drawn_from_their_axes_and_become_runs(tmp_path: Path, sampler: str) -> None:
    of, request = asked(tmp_path, sampler)
    for _ in range(16):
        begun = search.begin(of, request, environment.machine())
        assert begun and begun[1]
        trial, ready = begun
        train = ready.config.train
        assert trial["axes"] == {
            LR: train.optimizer.lr,
            "train.seed": train.seed,
            "train.schedule": train.schedule.model_dump(exclude_defaults=True),
        }
        assert ready.config.sweep == "s.sweep" and ready.run.run_id == f"s-{train.digest()[:8]}"
        assert ready.config.trial == Trial(
            study=of.name, number=trial["trial"], halving=of.search.halving
        )
        params = of.study().get_trials()[trial["trial"]].params
        # the study knows what is run
        assert params[LR] == train.optimizer.lr == float(f"{train.optimizer.lr:.4g}")
    assert search.begin(of, request, environment.machine()) is None
    axes = [trial["axes"] for trial in of.trials().values()]
    assert len({a[LR] for a in axes}) == 16 and {a["train.schedule"]["name"] for a in axes} == {
        "constant",
        "cosine",
    }
    assert all(0.001 <= a[LR] <= 1 for a in axes) and len({a["train.seed"] for a in axes}) > 4
    first, _ = search.begin(*asked(tmp_path / "again", sampler), environment.machine()) or (
        {},
        None,
    )
    other, _ = search.begin(*asked(tmp_path / "other", sampler, seed=1), environment.machine()) or (
        {},
        None,
    )
    assert first["axes"] == axes[0] != other["axes"]


def begin_all(folder: Path, of: Searched, request: Request) -> None:
    while search.begin(of, request, environment.machine()):
        pass


def test_processes_that_ask_at_once_begin_each_trial_once(tmp_path: Path) -> None:
    of, request = asked(tmp_path)
    crowd = [
        multiprocessing.get_context("spawn").Process(target=begin_all, args=(tmp_path, of, request))
        for _ in range(2)
    ]
    for process in crowd:
        process.start()
    for process in crowd:
        process.join(60)
    assert [process.exitcode for process in crowd] == [0, 0]
    assert list(of.trials()) == list(range(16)) == [t.number for t in of.study().get_trials()]
    assert len({trial["axes"][LR] for trial in of.trials().values()}) == 16


def test_a_trial_whose_asker_was_killed_is_replaced(tmp_path: Path) -> None:
    of, request = asked(tmp_path)
    search.begin(of, request, environment.machine())
    of.study().ask()  # and no record of it
    begun = search.begin(of, request, environment.machine())
    assert begun and begun[0]["trial"] == 2
    assert [t.state.name for t in of.study().get_trials()] == ["RUNNING", "FAIL", "RUNNING"]


def test_values_that_do_not_go_together_fail_that_trial_alone(tmp_path: Path) -> None:
    pairs = (
        "{train.epochs: [4, 2], train.schedule: [{name: constant}, {name: cosine, warmup_epochs:"
        " 3}]}"
    )
    of, request = asked(tmp_path, choices=pairs)  # `check` tries each value, and not each pair
    begun = [search.begin(of, request, environment.machine()) for _ in range(16)]
    wrong = [trial for trial, ready in filter(None, begun) if ready is None]
    two = [t for t in of.trials().values() if t["axes"]["train.epochs"] == 2]
    together = [t for t in two if t["axes"]["train.schedule"]["name"] == "cosine"]
    assert 0 < len(wrong) < 16 and [t["trial"] for t in wrong] == [t["trial"] for t in together]
    assert all(
        "train.schedule.warmup_epochs: 3 is more than epochs 2" in t["error"] for t in together
    )
    failed = [t.number for t in of.study().get_trials() if t.state == TrialState.FAIL]
    assert failed == [t["trial"] for t in wrong] and set(of.open_trials()) == set(range(16)) - set(
        failed
    )


def ended(ready: Ready, end: Outcome) -> None:
    """As if the run had come to that end."""
    write_json(ready.run.config, ready.config.model_dump(mode="json"))
    end.write(ready.run.attempt(end.attempt).outcome)


def test_a_prune_of_another_study_is_no_result_of_this_one(tmp_path: Path) -> None:
    of, request = asked(tmp_path)
    begun = search.begin(of, request, environment.machine())
    assert begun and begun[1]
    ready = begun[1]
    elsewhere = ready.config.model_copy(
        update={"trial": Trial(study="other", number=0, halving=Halving())}
    )
    ended(replace(ready, config=elsewhere), Outcome("stopped", "pruned", "local-1", "t"))
    assert list(of.open_trials()) == [0]


def test_trials_that_draw_the_same_are_one_run(tmp_path: Path) -> None:
    of, request = asked(tmp_path, choices="{train.optimizer.lr: [0.1, 0.2]}", ranges="{}")
    begun = [search.begin(of, request, environment.machine()) for _ in range(16)]
    own = [(trial, ready) for trial, ready in filter(None, begun) if ready]
    assert (
        len(of.trials()) == 16 and len(own) == len({t["run_id"] for t in of.trials().values()}) == 2
    )
    ends = {
        "completed": Outcome(
            "completed", "completed", "local-1", "t", extra={"best": {"value": 0.5}}
        ),
        "pruned": Outcome("stopped", "pruned", "local-1", "t"),
    }
    for (_, ready), end in zip(own, ends.values(), strict=True):
        ended(ready, end)
    assert of.open_trials() == {}
    states = {
        t["run_id"]: {
            of.study().get_trials()[n].state.name
            for n in of.trials()
            if of.trials()[n]["run_id"] == t["run_id"]
        }
        for t, _ in own
    }
    assert list(states.values()) == [{"COMPLETE"}, {"PRUNED"}]


def test_a_trial_whose_numbers_are_not_finite_has_failed_for_good(tmp_path: Path) -> None:
    of, request = asked(tmp_path)
    ready = [
        begun[1]
        for _ in range(3)
        if (begun := search.begin(of, request, environment.machine())) and begun[1]
    ]
    ended(ready[0], Outcome("failed", "nan", "local-1", "t"))
    ended(ready[1], Outcome("failed", "data", "local-1", "t"))
    # none of its validations was finite: it has no best one
    ended(ready[2], Outcome("completed", "completed", "local-1", "t"))
    assert list(of.open_trials()) == [1]
    assert [of.study().get_trials()[i].state for i in (0, 2)] == [TrialState.FAIL] * 2


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def shell(tmp_path: Path, cache: str) -> Shell:
    (tmp_path / "s.yaml").write_text(JOB.replace("SAMPLER", "tpe"))
    return Shell(tmp_path / "runs", cwd=tmp_path, env=(("XDG_CACHE_HOME", cache),))


def test_show_check_and_what_is_refused(shell: Shell, tmp_path: Path) -> None:
    assert shell.run("check", "s.yaml") == "s.yaml: right, 16 trials\n"
    shown = shell.run("show", "s.yaml")
    assert "s.sweep: 16 trials, 16 to begin; each is chosen when it begins" in shown
    assert (
        f'a run as a trial may be, train.schedule={{"name": "constant"}} {LR}=0.001 train.seed=0:'
        in shown
    )
    refused = shell.run("submit", "s.yaml", "--backend", "docker", code=2)
    assert "a search runs locally or on Slurm: a container sees its own run alone" in refused
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without site-packages
    python.chmod(0o755)
    (tmp_path / "site.yaml").write_text(f"python: {python}\n")
    refused = shell.run("submit", "s.yaml", "--site", "site.yaml", code=2)
    assert (
        f"{python} has no optuna, which a search takes: install the extra 'search' there" in refused
    )
    assert not shell.runs.exists()


def of_shell(shell: Shell) -> list[dict[str, Any]]:
    return sweep_records.submits(SweepDir(shell.runs / "s.sweep"))[-1]["points"]


def decisions(shell: Shell, study: str) -> tuple[dict[int, int], dict[int, int]]:
    """At which epoch each trial was pruned: as the journal says, and as optuna decides in memory on
    the journal's values, in the order in which the trials came to be compared.
    """
    journal = open_study(SweepDir(shell.runs / "s.sweep").journal, study, "accuracy", None)
    pruned = {t.number: t.last_step for t in journal.get_trials() if t.state == TrialState.PRUNED}
    memory = optuna.create_study(
        direction="maximize", pruner=optuna.pruners.SuccessiveHalvingPruner(1, 2)
    )
    trials, expected = [memory.ask() for _ in journal.get_trials()], dict[int, int]()
    asked = dict[int, int]()  # by trial, the step that it reported and was not yet compared at
    for line in SweepDir(shell.runs / "s.sweep").journal.read_text().splitlines():
        row = json.loads(line)
        if "intermediate_value" in row:
            trials[row["trial_id"]].report(row["intermediate_value"], row["step"])
            asked[row["trial_id"]] = row["step"]
        elif (
            any(name.startswith("completed_rung_") for name in row.get("system_attr", ()))
            and row["trial_id"] in asked
        ):
            step = asked.pop(row["trial_id"])
            if trials[row["trial_id"]].should_prune() and step < 4:
                expected[row["trial_id"]] = step
    return pruned, expected


@pytest.mark.long
def test_a_trial_as_typed(shell: Shell) -> None:
    printed = shell.run("submit", "s.yaml", "--set", "sweep.search.trials=1")
    assert (
        "s.sweep: 1 trial: 1 to begin" in printed
        and "[1/1] schedule=" in printed
        and "best: schedule=" in printed
    )
    (first,) = of_shell(shell)
    study = open_study(SweepDir(shell.runs / "s.sweep").journal, first["study"], "accuracy", None)
    run = RunDir(shell.runs / first["run_id"])
    assert study.get_trials()[0].value == outcome(run).extra["best"]["value"]
    assert study.get_trials()[0].intermediate_values == {
        row["epoch"]: row["accuracy"] for row in rows(run)
    }
    again = shell.run("submit", "s.sweep")
    assert "s.sweep: 1 trial: 1 done\n" in again and "[1/" not in again
    more = shell.run("show", "s.yaml", "--set", "sweep.search.trials=2")
    assert "s.sweep: 2 trials, 1 to begin" in more  # more trials are the same search
    other = shell.run("show", "s.yaml", "--set", "train.epochs=5", "--set", "sweep.search.trials=2")
    assert "s.sweep: 2 trials, 2 to begin" in other  # what was trained otherwise is another study


@pytest.mark.long
def test_sixteen_trials_cancelled_killed_and_taken_up_again(shell: Shell, tmp_path: Path) -> None:
    process = shell.start("submit", "s.yaml")
    wait_for(
        "three trials",
        lambda: (
            process.poll() is not None
            or (SweepDir(shell.runs / "s.sweep").record.exists() and len(of_shell(shell)) == 3)
        ),
    )
    wait_for(
        "its third's start", step_reached(RunDir(shell.runs / of_shell(shell)[2]["run_id"]), 18)
    )
    process.send_signal(signal.SIGINT)
    finish(process, code=75)
    begun = len(of_shell(shell))
    process = shell.start("submit", "s.yaml")
    wait_for(
        "a sixth trial", lambda: process.poll() is not None or len(of_shell(shell)) >= begun + 3
    )
    process.kill()
    finish(process, code=-9)
    printed = shell.run("submit", "s.yaml", timeout_s=400)
    assert "to begin" in printed and "best: " in printed
    points = of_shell(shell)
    assert [p["trial"] for p in points] == list(range(16))
    pruned, expected = decisions(shell, points[0]["study"])
    assert pruned == expected and 4 <= len(pruned) < 16

    number, epoch = next(iter(pruned.items()))
    run = RunDir(shell.runs / points[number]["run_id"])
    assert outcome(run).verdict == "pruned" and outcome(run).global_step == 18 * epoch
    assert f"{len(pruned)} pruned" in shell.run("status", "s.sweep")
    told = shell.run("why", run.run_id)
    assert (
        "stopped (pruned) at" in told
        and f"`batchyard submit {run.run_id}` continues from the checkpoint of step" in told
    )
    page = (shell.runs / "s.sweep" / "report.html").read_text()
    assert f"{len(pruned)} pruned" in page and "Pruned" in page
    shell.run("submit", run.run_id)
    whole = Shell(tmp_path / "whole", cwd=tmp_path, env=shell.env)
    settings = [
        f"--set={axis}={value}"
        for axis, value in points[number]["axes"].items()
        if axis != "train.schedule"
    ]
    name = points[number]["axes"]["train.schedule"]["name"]
    whole.run(
        "submit",
        "s.yaml",
        "--set",
        "sweep=null",
        *settings,
        "--set",
        f"train.schedule={{name: {name}}}",
    )
    assert outcome(whole.only_run()).weights_sha256 == outcome(run).weights_sha256
    assert whole.only_run().metrics.read_bytes() == run.metrics.read_bytes()
    assert "16 trials: 16 done" in shell.run("submit", "s.sweep")
