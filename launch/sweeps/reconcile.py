"""Which points of a sweep are to be started, continued, kept or cancelled: a pure function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from launch.spec.sweep import Point, key

Progress = Literal["done", "missing", "failed", "stopped", "running", "unreadable"]


# a run's state (launch.runs.find) -> what it means for a sweep. A dead run left no word: it is
# tried again as a failed one is.
PROGRESS: dict[str, Progress] = {
    "completed": "done",
    "new": "missing",
    "failed": "failed",
    "dead": "failed",
    "stopped": "stopped",
    "cancelled": "stopped",
    "pruned": "stopped",
    "running": "running",
    "queued": "running",
    "unknown": "missing",
    "unreadable": "unreadable",
}


@dataclass(frozen=True)
class Wanted:
    """A point of the sweep as it is wanted now, and how far its run is. before: its run_id in an
    earlier submit, if another.
    """

    point: Point
    run_id: str
    progress: Progress
    before: str | None = None

    @property
    def to_run(self) -> bool:
        """Missing ones are begun, stopped ones continued, failed ones tried again; done, running
        and unreadable ones are left alone.
        """
        return self.progress in ("missing", "failed", "stopped")


@dataclass(frozen=True)
class Reconciled:
    """What is wanted against what there is. unwanted: (axis values, run_id) of earlier submits that
    are no longer asked for.
    """

    wanted: list[Wanted]
    unwanted: list[tuple[dict[str, Any], str]]

    def count(self) -> dict[Progress, int]:
        return {
            p: sum(w.progress == p for w in self.wanted) for p in dict.fromkeys(PROGRESS.values())
        }


def reconcile(
    runs: list[tuple[Point, str]], states: dict[str, str], before: list[tuple[dict[str, Any], str]]
) -> Reconciled:
    """runs: each wanted point and its run_id; states: by run_id, as launch.runs.find says them
    (missing: never begun); before: (axis values, run_id) of all earlier submits, the oldest first.
    """
    latest = {key(axes): (axes, run_id) for axes, run_id in before}
    wanted = []
    for point, run_id in runs:
        _, earlier = latest.pop(point.key, (None, run_id))
        wanted.append(
            Wanted(
                point,
                run_id,
                PROGRESS[states.get(run_id, "new")],
                earlier if earlier != run_id else None,
            )
        )
    return Reconciled(wanted, list(latest.values()))
