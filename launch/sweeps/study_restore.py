"""A search's study, put in order after a killed write, a full disk or a deletion of its journal.

What of a trial is lost there is in sweep.json, which knows its number and its values, and in its
run, which knows what it reached. Imports optuna on use.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from launch import words
from launch.errors import SubmitError
from launch.runs import locks, state
from launch.sweeps.search import NO_OPTUNA, Record, Searched, distributions
from trainer.config.files.json_files import read_jsonl
from trainer.config.files.study import Halving

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def mend(of: Searched) -> str | None:
    """Puts aside what is no whole record of the journal, and adds the trials that the study lacks.

    Returns what was done, in a sentence; None where all was in order. Raises SubmitError.
    """
    trials = of.trials()
    if not of.sweep.journal.exists() and not trials:
        return None
    try:
        from trainer.config.files.journal import is_whole, put_aside
    except ImportError:
        raise SubmitError(NO_OPTUNA) from None

    # without the lock, which hundreds of tasks want that begin at once
    newest = max(trials, default=-1)
    if is_whole(of.sweep.journal) and len(of.study().get_trials(deepcopy=False)) > newest:
        return None

    lock = locks.take(of.sweep.submit_lock, of.sweep.sweep_id)
    try:
        aside = put_aside(of.sweep.journal)
        study = of.study()
        known = study.get_trials(deepcopy=False)
        missing = range(len(known), max(trials, default=-1) + 1)
        for number in missing:
            study.add_trial(_trial(of, trials.get(number)))
        if aside or missing:
            for trial in known:
                if trial.number in trials and not trial.state.is_finished():
                    _complete(of, study, trial, trials[trial.number])
    finally:
        lock.release()
    if not aside and not missing:
        return None
    cut = f"what was no whole record is in {aside.name}" if aside else "it lacked records"
    added = f"; {words.plural(len(missing), 'trial')} added from the runs" if missing else ""
    return f"{of.sweep.journal} was not in order: {cut}{added}"


def _trial(of: Searched, record: Record | None) -> FrozenTrial:
    """A trial that still runs, as far as the study knows.

    None: one that was asked for, and lost.
    """
    from optuna.trial import TrialState, create_trial

    if record is None:
        return create_trial(state=TrialState.FAIL)
    values = _reports(of, record)
    return create_trial(
        state=TrialState.RUNNING,
        params=_params(of, record),
        distributions=distributions(of.search),
        intermediate_values=values,
        system_attrs=_rungs(of.search.halving, values),
    )


def _complete(of: Searched, study: Study, trial: FrozenTrial, record: Record) -> None:
    """Adds what the cut journal lacks of a trial that has no result yet."""
    storage, known = study._storage, distributions(of.search)
    for name, value in _params(of, record).items():
        if trial.params.get(name) != value:
            internal = known[name].to_internal_repr(value)
            storage.set_trial_param(trial._trial_id, name, internal, known[name])
    if state.standing(of.sweep.run(record["run_id"])).is_active:  # it reports by itself
        return
    values = _reports(of, record)
    for epoch, value in values.items():
        if epoch not in trial.intermediate_values:
            storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
    for name, value in _rungs(of.search.halving, values).items():
        storage.set_trial_system_attr(trial._trial_id, name, value)


def _params(of: Searched, record: Record) -> dict[str, Any]:
    """A trial's values as optuna has them: choices as JSON."""
    axes = record["axes"].items()
    return {axis: json.dumps(v) if axis in of.search.choices else v for axis, v in axes}


def _reports(of: Searched, record: Record) -> dict[int, float]:
    """What the trial's run measured after each epoch, as its rank 0 has told the study."""
    rows = read_jsonl(of.sweep.run(record["run_id"]).metrics)
    of_validation = [r for r in rows if r.get("kind") == "eval" and r.get("split") == "val"]
    values = {int(row["epoch"]): row.get(of.metric) for row in of_validation}
    return {epoch: math.nan if value is None else float(value) for epoch, value in values.items()}


def _rungs(halving: Halving | None, values: dict[int, float]) -> dict[str, float]:
    """What optuna's SuccessiveHalvingPruner notes of a trial at each rung that it came to."""
    found = dict[str, float]()
    if halving is None:
        return found
    for epoch, value in sorted(values.items()):
        while epoch >= halving.min_epochs * halving.reduction_factor ** len(found):
            if math.isnan(value):
                return found
            found[f"completed_rung_{len(found)}"] = value
    return found
