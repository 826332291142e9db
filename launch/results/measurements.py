"""What a run measured, and of what it was: its figures, epochs, hardware, data, from the files in
its directory. No torch.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.runs import find, records
from launch.runs.records import Unreadable
from launch.runs.state import standing
from launch.words import finite, plural
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig, TrainConfig, canonical


@dataclass(frozen=True)
class Run:
    """A run, as far as it matters which one it is.

    unverified: how many files of its data differ from the published checksums; None: it was allowed
    to take such, and its record is of a time that did not count them. unread: by run_id, why runs
    are left out; all runs have one.
    """

    run: RunDir
    config: RunConfig
    unverified: int | None
    unread: dict[str, str]

    @property
    def length(self) -> tuple[int, float]:
        return length(self.config.train)

    @cached_property
    def state(self) -> str:
        return standing(self.run).state

    @property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl, which is not kept: there are thousands of runs.

        Ask all of one run before the next.
        """
        return _rows(self.run.metrics)

    @cached_property
    def reached_epoch(self) -> int:
        """The epoch of its last row; 0: it has none."""
        return max((int(row["epoch"]) for row in self.rows[-1:]), default=0)

    def is_readable(self) -> bool:
        """Whether its rows and its state are whole; else `unread` says what is wrong."""
        try:
            with records.reading(self.run):
                return self.reached_epoch >= 0 and bool(self.state)
        except Unreadable as error:
            self.unread[self.run.run_id] = error.within(self.run.path)
            return False

    def evaluations(self, split: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("kind") == "eval" and row.get("split") == split]


@functools.lru_cache(maxsize=8)
def _rows(metrics: Path) -> list[dict[str, Any]]:
    """The rows of the few runs that were asked last, as the seeds of one job."""
    return records.rows(metrics, records.METRICS)


def read_runs(runs: Path) -> tuple[dict[str, list[Run]], dict[str, str]]:
    """The runs by `key`, the oldest first; and, by run_id, why the others are left out, which grows
    as runs are looked at.

    An older run that was allowed unverified data had the published ones where another run proves
    it: with the same bytes, verified.
    """
    read, unread = [], dict[str, str]()
    for run in find.all_runs(runs):
        try:
            with records.reading(run):
                records.check_files(run)
                config = find.read_config(run)
                data = records.read(run.data_record, records.DATA) or {}
        except Unreadable as error:
            unread[run.run_id] = error.within(run.path)
            continue
        if config:
            read.append((run, config, unverified(config, data), data.get("sha256")))
    proven = {sha256 for *_, count, sha256 in read if count == 0}
    found: dict[str, list[Run]] = {}
    for run, config, count, sha256 in read:
        found.setdefault(key(config.train), []).append(
            Run(run, config, 0 if count is None and sha256 in proven else count, unread)
        )
    return found, unread


def unverified(config: RunConfig, data: dict[str, Any]) -> int | None:
    """How many files of its data differ from the published checksums; None: not known. data: the
    run's data.json.
    """
    if not config.execution.allow_unverified_data:
        return 0
    return len(data["unverified"]) if "unverified" in data else None


def key(train: TrainConfig) -> str:
    """Equal for runs that differ in the seed and in how long they train alone."""
    kept = {k: v for k, v in canonical(train).items() if k not in ("seed", "epochs", "max_steps")}
    # a run has the run_id of what it began with, where its job may have that one's job
    if "run" in kept.get("weights", {}):
        kept["weights"] = {**kept["weights"], "run": find.job_of(kept["weights"]["run"])}
    return json.dumps(kept, sort_keys=True)


def length(train: TrainConfig) -> tuple[int, float]:
    """Epochs, and steps where they are limited."""
    return train.epochs, train.max_steps or float("inf")


def not_in_full(run: Run) -> list[str]:
    """What sets a run apart from a whole one on the published data."""
    found = []
    if run.state != "completed":
        found.append(f"{run.state} before its end")
    elif (read_json(run.run.outcome) or {}).get("extra", {}).get("early_stopped"):
        found.append("stopped early by its validation")
    if run.unverified is None:
        found.append("stand-in: data that may differ from the published checksums")
    elif run.unverified:
        found.append(f"stand-in: {plural(run.unverified, 'file')} of the data not as published")
    return found


def epochs(run: Run) -> str:
    """How many epochs a run reached, and of how many."""
    wanted, reached = run.config.train.epochs, run.reached_epoch
    return f"{wanted}" if reached == wanted else f"{reached} of {wanted}"


def hardware(run: Run) -> str:
    """8 x NVIDIA H100 80GB HBM3; 2 threads of AMD EPYC, of two ranks 2 x 1 thread.

    By the newest attempt, which may have had fewer ranks than the job asks for. Older attempts tell
    no name: 8 GPUs, 2 threads.
    """
    how, attempts = run.config.execution, run.run.all_attempts()
    record, told = (
        ((read_json(path) or {}) for path in (attempts[-1].record, attempts[-1].hardware))
        if attempts
        else ({}, {})
    )
    ranks, name = record.get("world_size") or how.ranks, told.get("name")
    if how.device == "cuda":
        return f"{ranks} x {name}" if name else plural(ranks, "GPU")
    threads = (f"{ranks} x " if ranks > 1 else "") + plural(how.threads_per_rank, "thread")
    return f"{threads} of {name}" if name else threads


def measure(run: Run, name: str, epoch: int | None, of_class: str | None = None) -> float | None:
    """A figure of a run after that epoch, or after its last one; None where it was not measured
    then.
    """
    if name == "class_accuracy":
        return _class_accuracy(run, of_class)
    if name in ("loss_book", "loss_book_running"):
        return _loss_book(run, epoch, running=name == "loss_book_running")
    if name == "highest_test_accuracy":
        return max(
            (
                a
                for row in run.evaluations("test")
                if (a := finite(row.get("accuracy"))) is not None
            ),
            default=None,
        )
    split, _, what = (
        name.partition("_") if name.startswith(("train_", "test_")) else ("test", "", name)
    )
    what = {"pixel_accuracy": "accuracy", "error": "accuracy"}.get(what, what)
    if split == "train" and run.config.train.data.task != "regression":
        value = _epoch_mean(run, what, epoch)
    else:
        found = [row for row in run.evaluations(split) if epoch in (None, row.get("epoch"))]
        value = finite(found[-1].get(what)) if found else None
    return 1 - value if value is not None and name.endswith("_error") else value


def _epoch_mean(run: Run, what: str, epoch: int | None) -> float | None:
    """The mean over the samples of an epoch, or of the last one."""
    found = [(finite(row.get(what)), row["samples"]) for row in _train_rows(run, epoch)]
    # a mean of what is finite would be of a part of the epoch
    if not found or any(value is None for value, _ in found):
        return None
    total = sum(value * samples for value, samples in found if value is not None)
    return float(total / sum(samples for _, samples in found))


def _train_rows(run: Run, epoch: int | None) -> list[dict[str, Any]]:
    """Those of an epoch, or of the last one: no train row is of two epochs."""
    train = [row for row in run.rows if row.get("kind") == "train"]
    return [row for row in train if row["epoch"] == (epoch or train[-1]["epoch"])]


def _loss_book(run: Run, epoch: int | None, *, running: bool) -> float | None:
    """The loss column of Dive into Deep Learning's PyTorch edition (train_ch3 and train_ch5 as
    their output was printed; train of chapter 9): the sum of an epoch's batch means, divided by its
    samples; or, running, by all batches since the first epoch.

    The mean over samples stands for that over batches: a last batch of fewer samples makes less
    than the printed digits.
    """
    mean_loss, rows = _epoch_mean(run, "loss", epoch), _train_rows(run, epoch)
    if mean_loss is None:
        return None
    now = int(rows[-1]["epoch"])
    if running:
        return mean_loss / now
    # it has the step at which this epoch began
    before = _train_rows(run, now - 1) if now > 1 else []
    batches = int(rows[-1]["global_step"]) - (int(before[-1]["global_step"]) if before else 0)
    return mean_loss * batches / sum(float(row["samples"]) for row in rows)


def _class_accuracy(run: Run, of_class: str | None) -> float | None:
    found = read_json(run.run.evaluation("test")) or {}
    # null: its outputs were not finite
    if of_class not in found.get("classes", []) or found["correct"] is None:
        return None
    i = found["classes"].index(of_class)
    return found["correct"][i] / found["samples"][i] if found["samples"][i] else None
