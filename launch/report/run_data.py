"""What the report knows of a run: its files, read so that none of them has to exist.

Imports trainer.config, no launch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from launch.words import finite
from trainer.config.files.json_files import read_json, read_jsonl
from trainer.config.files.layout import Attempt, RunDir

Row = dict[str, Any]


@dataclass(frozen=True)
class AttemptFacts:
    """One attempt: attempt.json, outcome.json and its rows of timing.jsonl."""

    id: str
    record: Row
    outcome: Row
    timing: list[Row]

    def numbers(self, key: str) -> list[float]:
        return [v for row in self.timing if (v := finite(row.get(key))) is not None]

    def lasted_s(self) -> tuple[float | None, bool]:
        """Seconds from start to end, and whether that is all: without an end, it is what the last
        timing row says.
        """
        started, ended = finite(self.record.get("started")), finite(self.record.get("ended"))
        if started is not None and ended is not None and ended >= started:
            return ended - started, True
        return max(self.numbers("elapsed_s"), default=None), False


@dataclass(frozen=True)
class Facts:
    """A run as its files tell it at one moment."""

    path: Path
    run_id: str
    outcome: Row  # of the newest attempt; empty while there is none
    running: bool  # an attempt holds the run's lock
    attempts: list[AttemptFacts]
    train: list[Row]
    evals: list[Row]
    config: Row
    code: Row
    job_text: str
    # file name -> its content, of those that are there; None where it is not JSON
    figures: dict[str, Any]
    read_at: float

    @property
    def job(self) -> str:
        return str(self.config.get("job") or self.run_id.rpartition("-")[0] or self.run_id)

    def section(self, key: str) -> Row:
        return as_row(self.config.get(key))

    def last_eval(self) -> Row:
        """The newest row of the test set that has an accuracy; of numbers, which have none, that
        has a loss.

        A null counts: it says that the newest evaluation was not finite, and an older one is not
        its result.
        """
        tests = [r for r in reversed(self.evals) if r.get("split") == "test"]
        for key in ("accuracy", "loss"):
            for row in tests:
                if key in row and (row[key] is None or finite(row[key]) is not None):
                    return row
        return {}

    @property
    def extra(self) -> Row:
        """What the outcome says beside the words that every outcome has."""
        return as_row(self.outcome.get("extra"))

    def newest(self, key: str) -> Any:
        """The value of the newest attempt record that has one."""
        return next(
            (a.record[key] for a in reversed(self.attempts) if a.record.get(key) is not None), None
        )

    def global_step(self) -> float | None:
        """The outcome's word, else the last row's."""
        said = finite(self.outcome.get("global_step"))
        return (
            said
            if said is not None
            else max((float(r["global_step"]) for r in self.train + self.evals), default=None)
        )

    def continues(self) -> list[tuple[float, str]]:
        """Where each attempt but the first took over: (global_step, attempt id).

        No file says this step. It is at most the step that the attempt before reported last, and
        less than the first one that this attempt timed; an attempt that was killed leaves only the
        second.
        """
        marks = []
        for before, this in pairwise(self.attempts):
            known = [finite(before.outcome.get("global_step")), *this.numbers("global_step")[:1]]
            if steps := [step for step in known if step is not None]:
                marks.append((min(steps), this.id))
        return marks


def as_row(value: Any) -> Row:
    return value if isinstance(value, dict) else {}


def read(run: RunDir) -> Facts:
    """Everything that the page shows, from whatever of `run` is there."""
    timing = [row for row in read_jsonl(run.timing) if isinstance(row, dict)]
    attempts = [_attempt(a, timing) for a in run.all_attempts()]
    outcome = _outcome(run, attempts)
    if attempts:
        attempts[-1] = replace(attempts[-1], outcome=outcome)
    rows = [
        r
        for r in read_jsonl(run.metrics)
        if isinstance(r, dict) and finite(r.get("global_step")) is not None
    ]
    return Facts(
        path=run.path,
        run_id=run.run_id,
        outcome=outcome,
        running=run.lock.exists(),
        attempts=attempts,
        train=[row for row in rows if row.get("kind") == "train"],
        evals=[row for row in rows if row.get("kind") == "eval"],
        config=as_row(read_json(run.config)),
        code={k: v for k, v in as_row(read_json(run.code_record)).items() if k != "contents"},
        job_text=run.job.read_text(errors="replace") if run.job.is_file() else "",
        figures={path.name: read_json(path) for path in _figures(run) if path.exists()},
        read_at=time.time(),
    )


def _figures(run: RunDir) -> list[Path]:
    evaluations = [run.evaluation("val"), run.evaluation("test")]
    return [
        *evaluations,
        run.samples,
        run.augmentations,
        run.predictions,
        run.misclassified,
        run.masks,
    ]


def _attempt(attempt: Attempt, timing: list[Row]) -> AttemptFacts:
    mine = [row for row in timing if row.get("attempt") == attempt.id]
    return AttemptFacts(
        attempt.id, as_row(read_json(attempt.record)), as_row(read_json(attempt.outcome)), mine
    )


def _outcome(run: RunDir, attempts: list[AttemptFacts]) -> Row:
    """The newest attempt's.

    The run's own copy counts only if it is of that attempt: an older one is not this end.
    """
    copy = as_row(read_json(run.outcome))
    if not attempts or copy.get("attempt") == attempts[-1].id:
        return copy
    return attempts[-1].outcome
