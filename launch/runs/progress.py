"""How far a run is, read from the end of its metrics."""

from __future__ import annotations

from typing import Any

from launch.runs import records
from trainer.config import steps
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir

LAST_BYTES = 2**16  # of metrics.jsonl and timing.jsonl, in which their newest rows are looked for


def _planned_steps(run: RunDir) -> int | None:
    """The steps of a run whose trainer has not told them yet, by its data and its config."""
    data, config = read_json(run.data_record), read_json(run.config)
    if not data or not config:
        return None
    return steps.planned(config["train"], data["samples"]["train"])


NOTHING_YET: dict[str, Any] = dict.fromkeys(
    ("step", "total", "loss", "test_accuracy", "step_time_s")
)


def progress(run: RunDir) -> dict[str, Any]:
    """The newest rows: step, total, loss, test_accuracy, step_time_s (seconds a step); each None
    where there is no row yet.
    """
    rows = records.rows(run.metrics, {}, LAST_BYTES)
    nothing: dict[str, Any] = {}
    train = next((r for r in reversed(rows) if r.get("kind") == "train"), nothing)
    test = next((r for r in reversed(rows) if r.get("kind") == "eval"), nothing)
    timing = next(reversed(records.rows(run.timing, {}, LAST_BYTES)), nothing)
    for row in (train, test):
        records.checked(row, records.METRICS, run.metrics)
    records.checked(timing, records.TIMING, run.timing)
    total = timing.get("total_steps") or _planned_steps(run)
    return {
        "step": train.get("global_step"),
        "total": total,
        "loss": train.get("loss"),
        "test_accuracy": test.get("accuracy"),
        "step_time_s": timing.get("step_time_s"),
    }
