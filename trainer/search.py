"""What a trial tells its study after each evaluation, and whether it is to stop for better ones.

Rank 0 alone has one.
"""

from __future__ import annotations

import math

from optuna import Study
from optuna.trial import Trial, TrialState

from trainer.config.files.layout import RunDir, SweepDir
from trainer.config.files.study import open_study
from trainer.config.run import RunConfig
from trainer.ranks.environment import say


class Judge:
    """Asks optuna.

    A journal that cannot be read or written stops no training: a line in the log, and the trial
    goes on.
    """

    def __init__(self, config: RunConfig, run: RunDir) -> None:
        self.journal = SweepDir(run.path.parent / str(config.sweep)).journal
        self.metric, self.place = config.train.best_metric, config.trial
        self._study: Study | None = None

    def is_losing(self, epoch: int, value: float | None, *, over: bool) -> bool:
        """Reports an evaluation, and returns optuna's decision. value: of the validation split.
        over: no epoch is left to save.

        A value that is not finite (None) is NaN for optuna, which lets no such trial pass a rung.

        A continued run that comes to an epoch for the second time gets the first answer: the others
        have come further since.
        """
        try:
            return self._ask(epoch, math.nan if value is None else value, over=over)
        # the disk; the journal; its lock
        except (OSError, ValueError, LookupError, RuntimeError) as error:
            say(
                f"the search's journal {self.journal} does not answer, so this trial goes on:"
                f" {error}"
            )
            # a submit may mend the file: the next time it is read from its beginning
            self._study = None
            return False

    def _ask(self, epoch: int, value: float, *, over: bool) -> bool:
        if self._study is None:
            self._study = open_study(
                self.journal, self.place.study, self.metric, self.place.halving
            )
        known = self._study.get_trials(deepcopy=False)[self.place.number]
        if known.state.is_finished() or epoch in known.intermediate_values:
            return known.state == TrialState.PRUNED
        trial = Trial(self._study, known._trial_id)  # the trial was asked for by another process
        trial.report(value, epoch)
        # asked at the end too: the others are compared with what it reached
        losing = trial.should_prune() and not over
        if losing:
            self._study.tell(self.place.number, state=TrialState.PRUNED)
        return losing
