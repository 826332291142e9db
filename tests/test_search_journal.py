"""A search's journal with half a record, a blank line, without its end, or deleted: the search goes
on.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from launch.spec.sweep import Search
from launch.sweeps import search, study_restore
from launch.sweeps.search import Record, Searched
from tests.cli import Shell
from tests.test_search import JOB, LR
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import SweepDir
from trainer.config.files.outcome import Outcome
from trainer.config.files.study import open_study

OF = Search.model_validate(
    {
        "trials": 8,
        "ranges": {LR: {"low": 0.001, "high": 1.0, "log": True}},
        "choices": {"train.schedule": [{"name": "constant"}, {"name": "cosine"}]},
        "halving": {"min_epochs": 1, "reduction_factor": 2},
    }
)


@pytest.fixture
def of(tmp_path: Path) -> Searched:
    """A search of four trials: complete, pruned, running on its second epoch, and asked for."""
    found = Searched(SweepDir(tmp_path / "t.sweep"), OF, "s", "accuracy")
    records = list[Record]()
    for number in range(4):
        asked = found.study().ask(search.distributions(OF))
        axes = {axis: asked.params[axis] for axis in OF.ranges}
        axes["train.schedule"] = OF.choices["train.schedule"][number % 2]
        name = "train.schedule"
        choice = search.distributions(OF)[name]
        told = study_restore._params(found, {"axes": axes})[name]
        asked.storage.set_trial_param(asked._trial_id, name, choice.to_internal_repr(told), choice)
        records.append({"axes": axes, "run_id": f"t-{number:08}", "study": "s", "trial": number})
        reports(found, number, (4, 1, 2, 0)[number], asked)
    submits = [{"started": 1.0, "ended": None, "pid": 1, "points": records}]
    write_json(found.sweep.record, {"job": "t", "submits": submits})
    ends(found, 0, "completed")
    ends(found, 1, "pruned")
    found.open_trials()
    return found


def reports(of: Searched, number: int, epochs: int, asked: object) -> None:
    run = of.sweep.run(f"t-{number:08}")
    run.path.mkdir()
    write_json(run.config, {"run_id": run.run_id, "trial": {"study": "s", "number": number}})
    with run.metrics.open("w") as metrics:
        for epoch in range(1, epochs + 1):
            value = 0.9 - 0.1 * number + 0.01 * epoch
            row = f'{{"kind": "eval", "split": "val", "epoch": {epoch}, "accuracy": {value}}}\n'
            metrics.write(row)
            asked.report(value, epoch)  # type: ignore[attr-defined]
            asked.should_prune()  # type: ignore[attr-defined]


def ends(of: Searched, number: int, verdict: str) -> None:
    run = of.sweep.run(f"t-{number:08}")
    attempt = run.attempt("local-1")
    attempt.path.mkdir(parents=True)
    extra = {"best": {"value": 0.94}}
    status = "completed" if verdict == "completed" else "stopped"
    outcome = Outcome(status, verdict, attempt.id, "test", extra=extra)  # type: ignore[arg-type]
    outcome.write(attempt.outcome)


def trials(of: Searched) -> list[FrozenTrial]:
    return open_study(of.sweep.journal, "s", "accuracy", OF.halving).get_trials()


def facts(found: list[FrozenTrial]) -> list[object]:
    rungs = [{k: v for k, v in t.system_attrs.items() if "rung" in k} for t in found]
    known = [(t.number, t.params, t.state, t.value, t.intermediate_values) for t in found]
    return list(zip(known, rungs, strict=True))


DAMAGES = {
    "half a record": lambda text: text + b'{"op_code":4,"worker',
    "half a record and others behind": lambda text: text + b'{"op_co' + text[-200:],
    "a cut last line": lambda text: text[:-9],
    "cut in the middle": lambda text: text[: len(text) // 2],
    "a blank line": lambda text: text + b"\n",
    "a blank line in the middle": lambda text: text.replace(b"\n", b"\n\n", 3),
    "empty": lambda text: b"",
    "no journal": lambda text: text,
    "binary": lambda text: b"\x00" * 400,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_mended_from_the_runs(of: Searched, damage: str) -> None:
    before, text = facts(trials(of)), of.sweep.journal.read_bytes()
    of.sweep.journal.write_bytes(DAMAGES[damage](text))
    if damage == "no journal":
        of.sweep.journal.unlink()

    study_restore.mend(of)
    assert sorted(of.open_trials()) == [2, 3]
    assert facts(trials(of)) == before
    assert study_restore.mend(of) is None

    asked = of.study().ask(search.distributions(OF))
    assert asked.number == 4
    kept = of.sweep.journal.read_bytes()
    for aside in of.sweep.path.glob("study.journal.aside-*"):
        kept += aside.read_bytes()
    lost = DAMAGES[damage](text)
    assert damage == "no journal" or all(line in kept for line in lost.splitlines())


def test_what_was_done_is_said(of: Searched) -> None:
    lines = of.sweep.journal.read_bytes().splitlines(keepends=True)
    third = next(n for n, line in enumerate(lines) if b'"trial_id":2' in line)
    of.sweep.journal.write_bytes(b"".join(lines[: third - 1]) + b"half")
    said = study_restore.mend(of)
    assert (
        said == f"{of.sweep.journal} was not in order: what was no whole record is in "
        "study.journal.aside-1; 2 trials added from the runs"
    )


def test_half_a_record_is_put_aside_before_another_is_written(of: Searched) -> None:
    with of.sweep.journal.open("ab") as journal:
        journal.write(b'{"op_code":4,"wor')  # by a process that was killed
    assert of.study().ask(search.distributions(OF)).number == 4
    assert [trial.state for trial in trials(of)][2:] == [TrialState.RUNNING] * 3
    assert (of.sweep.path / "study.journal.aside-1").read_bytes() == b'{"op_code":4,"wor'


@pytest.mark.long
def test_a_search_goes_on_after_its_journal_was_cut_and_deleted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "s.yaml").write_text(JOB.replace("SAMPLER", "random"))
    cache = str(tmp_path_factory.mktemp("cache"))
    shell = Shell(tmp_path / "runs", cwd=tmp_path, env=(("XDG_CACHE_HOME", cache),))
    shell.run("submit", "s.yaml", "--set", "sweep.search.trials=1")
    journal = SweepDir(shell.runs / "s.sweep").journal
    journal.write_bytes(journal.read_bytes()[:-9] + b"\n\n")
    printed = shell.run("submit", "s.yaml", "--set", "sweep.search.trials=1")
    assert "s.sweep: 1 trial: 1 done" in printed and "was not in order" in printed
    journal.unlink()
    printed = shell.run("submit", "s.yaml", "--set", "sweep.search.trials=2")
    assert "1 done, 1 to begin" in printed and "1 trial added from the runs" in printed
