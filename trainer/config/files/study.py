"""A search's study: what its trials know of it, and how trainer and launcher open it, optuna's
journal in the sweep's directory.

optuna is imported where a search is on, and only there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from trainer.config.strict import Strict

if TYPE_CHECKING:
    from optuna import Study
    from optuna.samplers import BaseSampler


class Halving(Strict):
    """Successive halving, asynchronous (Li et al., arXiv:1810.05934; optuna's
    SuccessiveHalvingPruner): after min_epochs, min_epochs * reduction_factor, ... epochs a trial
    goes on where it is among the best 1 / reduction_factor of those that came there so far.
    """

    min_epochs: int = Field(1, ge=1, description="epochs before a trial is first compared")
    reduction_factor: int = Field(4, ge=2, description="one trial in so many goes on")


class Trial(Strict):
    """A run's place in the study. A run without one is never stopped for another."""

    study: str = Field(description="its name in the journal")
    number: int = Field(ge=0)
    halving: Halving | None


def open_study(
    journal: Path,
    name: str,
    metric: str,
    halving: Halving | None,
    sampler: BaseSampler | None = None,
) -> Study:
    """The study of that name in the journal, made where it is missing. metric: `train.best_metric`.
    sampler: for who asks.

    Raises OSError and ValueError where the disk, or the journal, is not in order.
    """
    import optuna

    from trainer.config.files.journal import Journal

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pruner: optuna.pruners.BasePruner = optuna.pruners.NopPruner()
    if halving:
        pruner = optuna.pruners.SuccessiveHalvingPruner(
            halving.min_epochs, halving.reduction_factor
        )
    storage = optuna.storages.JournalStorage(Journal(journal))
    direction: Literal["minimize", "maximize"] = "minimize" if metric == "loss" else "maximize"
    return optuna.create_study(
        storage=storage,
        study_name=name,
        direction=direction,
        pruner=pruner,
        sampler=sampler or optuna.samplers.RandomSampler(),
        load_if_exists=True,
    )
