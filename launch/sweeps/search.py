"""A search: optuna's study in the sweep's directory chooses the points, each when it begins, and
learns how they ended.

What a study knows of a trial is its values; which run a trial is stands in sweep.json. Imports
optuna on use.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from launch.environment import Machine
from launch.errors import SubmitError
from launch.runs import sweep_records
from launch.runs.state import folder_clock, standing
from launch.spec import load
from launch.spec.job import Job, Loaded
from launch.spec.sweep import Search
from launch.spec.yaml_tree import SpecError
from launch.submit import request as submitting
from launch.submit.request import Ready, Request
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import SweepDir
from trainer.config.files.study import Trial, open_study
from trainer.config.run import canonical

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler

NO_OPTUNA = "a search takes optuna: install the extra 'search' in the Python of batchyard"

# of one trial, as it stands in sweep.json among the points: {axes, run_id, study, trial}
Record = dict[str, Any]


@dataclass(frozen=True)
class Searched:
    """A search and where it lies. name: of its study, by all that makes trials comparable; how many
    trials there are does not.
    """

    sweep: SweepDir
    search: Search
    name: str
    metric: str

    def study(self, sampler: BaseSampler | None = None) -> Study:
        """Raises SubmitError where there is no optuna, or the journal is not in order."""
        self.sweep.path.mkdir(parents=True, exist_ok=True)
        try:
            return open_study(
                self.sweep.journal, self.name, self.metric, self.search.halving, sampler
            )
        except ImportError:
            raise SubmitError(NO_OPTUNA) from None
        except ValueError as error:
            raise SubmitError(
                f"{self.sweep.journal} is corrupt: {error}; submitting again mends it"
            ) from None

    def trials(self) -> dict[int, Record]:
        """Every trial that has begun, in the order of their numbers; what is known last of each."""
        recorded = [
            p
            for submit in sweep_records.submits(self.sweep)
            for p in submit["points"]
            if p.get("study") == self.name
        ]
        return {p["trial"]: p for p in sorted(recorded, key=lambda p: p["trial"])}

    def missing(self) -> int:
        """How many trials have not begun."""
        return max(0, self.search.trials - len(self.trials()))

    def open_trials(self) -> dict[int, Record]:
        """Those without a result, after what has ended since was told to the study."""
        study = self.study()
        finished = {t.number for t in study.get_trials(deepcopy=False) if t.state.is_finished()}
        still_open = {}
        for number, trial in self.trials().items():
            if number not in finished:
                if (result := self._result(trial)) is None:
                    still_open[number] = trial
                else:
                    _tell(study, number, *result)
        return still_open

    def _result(self, trial: Record) -> tuple[str, float | None] | None:
        """optuna's word for how a trial's run ended, and the value of one that is complete; None
        while it may go on.
        """
        run = self.sweep.run(trial["run_id"])
        outcome = standing(run, clock=folder_clock([run])).outcome
        if outcome and outcome.status == "completed":
            best = outcome.extra.get("best")
            # no validation of it was finite
            return ("COMPLETE", float(best["value"])) if best else ("FAIL", None)
        if outcome and outcome.verdict == "nan":  # it would come to the same again
            return "FAIL", None
        place = (read_json(run.config) or {}).get("trial") or {}
        # of this study, not of another one
        if outcome and outcome.verdict == "pruned" and place.get("study") == self.name:
            return "PRUNED", None
        return None


def searched(sweep: SweepDir, loaded: Loaded) -> Searched:
    """The search of a job that has one."""
    assert loaded.search is not None
    train = loaded.specs[0].train
    content = [canonical(train), loaded.search.model_dump(mode="json", exclude={"trials"})]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return Searched(sweep, loaded.search, digest[:8], train.best_metric)


def begin(of: Searched, request: Request, machine: Machine) -> tuple[Record, Ready | None] | None:
    """Asks for the next trial and records it in the newest submit; returns it and its run.

    None: all have begun.

    A trial without a run of its own drew what another one drew, and has its result; or its values
    do not go together: then its record has the error, and the study knows that it failed. Raises
    SubmitError.
    """
    # one at a time: a trial's number decides its draw
    with sweep_records.recording(of.sweep, request.job.name) as submits:
        begun = of.trials()
        if len(begun) >= of.search.trials:
            return None
        number, axes = _ask(of, set(begun))
        trial: Record = {
            "axes": axes,
            "run_id": f"{request.job.name}-trial-{number}",
            "study": of.name,
            "trial": number,
        }
        submits[-1]["points"].append(trial)
        try:
            ready = resolve(of, request, machine, number, axes)
        except SpecError as error:
            _tell(of.study(), number, "FAIL")
            trial["error"] = str(error)
            return trial, None
        trial["run_id"] = ready.run.run_id
        is_own = all(other["run_id"] != ready.run.run_id for other in begun.values())
    return trial, ready if is_own else None


def told(trial: Record) -> str:
    """Of a trial without a run of its own, why."""
    why = (
        trial.get("error")
        or f"it drew what another one drew, and has the result of {trial['run_id']}"
    )
    return f"trial {trial['trial']}: {why}"


def resolve(
    of: Searched,
    request: Request,
    machine: Machine,
    number: int,
    axes: dict[str, Any],
    run_id: str | None = None,
) -> Ready:
    """The run of a trial: the one that `--set` would make of the sweep's own job. run_id: of one
    that has begun.
    """
    settings = ("sweep=null", *(f"{axis}={json.dumps(value)}" for axis, value in axes.items()))
    # its fallback is laid on already
    job = load.load(Job(request.job.name, of.sweep.job), settings, without_gpu=False)
    alone = of.sweep.sweep_id != f"{request.job.name}.sweep"
    own = replace(request, sweep=of.sweep.sweep_id, run_id=run_id, new=alone and run_id is None)
    ready = submitting.resolve(own, job, machine)
    place = Trial(study=of.name, number=number, halving=of.search.halving)
    return replace(ready, config=ready.config.model_copy(update={"trial": place}))


def _ask(of: Searched, begun: set[int]) -> tuple[int, dict[str, Any]]:
    """The next trial's number and values.

    The sampler's seed is a function of the search's seed and that number, so that trials chosen by
    different processes are not all the first draw of one generator.
    """
    import optuna

    study = of.study()
    known = study.get_trials(deepcopy=False)
    for lost in known:  # asked for by a process that was killed before it wrote its record
        if lost.number not in begun and not lost.state.is_finished():
            _tell(study, lost.number, "FAIL")
    seed = int.from_bytes(hashlib.sha256(f"{of.search.seed}/{len(known)}".encode()).digest()[:4])
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    drawn_from = distributions(of.search)
    asked = of.study(samplers[of.search.sampler](seed=seed)).ask(drawn_from)
    values = {
        axis: json.loads(v) if axis in of.search.choices else v for axis, v in asked.params.items()
    }
    for axis, r in of.search.ranges.items():
        # four digits, as in a random sweep; the study learns from what is run
        if isinstance(values[axis], float):
            values[axis] = max(r.low, min(r.high, float(f"{values[axis]:.4g}")))
            asked.storage.set_trial_param(asked._trial_id, axis, values[axis], drawn_from[axis])
    return asked.number, values


def distributions(search: Search) -> dict[str, Any]:
    """optuna's. Choices as JSON, since its own are scalars: a trial may choose between mappings."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    made: dict[str, Any] = {
        axis: CategoricalDistribution([json.dumps(v) for v in c])
        for axis, c in search.choices.items()
    }
    for axis, r in search.ranges.items():
        if isinstance(r.low, int) and isinstance(r.high, int):
            made[axis] = IntDistribution(r.low, r.high, log=r.log)
        else:
            made[axis] = FloatDistribution(r.low, r.high, log=r.log)
    return made


def _tell(study: Study, number: int, state: str, value: float | None = None) -> None:
    """Ends a trial in the study; does nothing where another process has just done so."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    with contextlib.suppress(UpdateFinishedTrialError):
        study.tell(number, value, TrialState[state], skip_if_finished=True)
