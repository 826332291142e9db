"""The data and the weights that a run begins with are made, once for all that share them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from launch import text
from launch.errors import SubmitError
from launch.submit import snapshot
from launch.submit.request import Ready
from launch.submit.tools import tool_of
from trainer.config import micro_batches, steps
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.lock import Lock
from trainer.config.run import RunConfig, TrainConfig

Made = Future[dict[str, Any]]  # what prepare tells of a data set, once it is there


class Together:
    """The data sets of points that are queued together, each made ready once, while the points are
    written.

    made: by what it is made from, what prepare tells of it.
    """

    def __init__(self) -> None:
        self.made: dict[str, Made] = {}
        self._one_by_one = ThreadPoolExecutor(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is made ready any more once the caller has given up: its runs may be another
        submit's by then.
        """
        self._one_by_one.shutdown(cancel_futures=True)

    def ask(self, ready: Ready, code: Path) -> Made:
        """A point's data, made by that code."""
        train, how = ready.config.train, ready.config.execution
        allowed = f"{how.allow_unverified_data} {how.max_image_pixels}"
        # a run that has started keeps its prepared set
        started = (read_json(ready.run.data_record) or {}).get("path")
        asked = f"{code} {train.data.prepared_by()} {allowed} {started} {_begins_with(train)!r}"
        if asked not in self.made:
            self.made[asked] = self._one_by_one.submit(make_data, ready, code)
        return self.made[asked]


def prepare_data(
    ready: Ready,
    say: Callable[[str], None],
    made: dict[str, Any] | None = None,
    lock: Lock | None = None,
) -> None:
    """Makes the data set (and the weights to begin with) ready by the run's own Python and code,
    and records what was made.

    made: that, where it was made for several. lock: under which this is done, to be renewed
    meanwhile. Raises SubmitError, and LockLost where another submit has taken it.
    """
    run = ready.run
    record = made or make_data(ready, run.code, lock)
    if lock is not None:
        lock.verify()
    known = run.data_record.exists() and json.loads(run.data_record.read_text())
    if known and known["sha256"] != record["sha256"]:
        raise SubmitError(
            f"the prepared data is not what {run.run_id} was trained on (sha256"
            f" {record['sha256'][:12]}, was {known['sha256'][:12]}); --new starts another run"
        )
    if not known:
        check_micro_batches(ready, record)
    write_json(run.data_record, record, sync=made is None)
    for note in record.get("notes", ()):
        say(note)
    if left_out := len(record.get("skipped", ())):
        say(
            f"{left_out} picture(s) cannot be used and are left out; {text.shown(run.data_record)}"
            " names them"
        )


def check_micro_batches(ready: Ready, record: dict[str, Any]) -> None:
    """Raises SubmitError where BatchNorm would refuse a micro-batch of a run that has not begun.
    record: of its data.
    """
    config, prepared = ready.config, record["samples"]["train"]
    train, ranks = dict(config.train), config.execution.ranks
    if problem := micro_batches.problem(train, prepared, ranks):
        raise SubmitError(f"train.global_batch_size: {problem}")
    samples = steps.trained_on(
        prepared, config.train.data.wanted()[0], config.train.data.validation
    )
    if not micro_batches.only_torch_knows(train):
        return
    if not micro_batches.is_one_sample(train, samples, config.train.global_batch_size, ranks):
        return
    asked = ("--prepared", str(prepared), "--classes", str(len(record["classes"])))
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        path = Path(folder) / "config.json"
        write_json(path, config.model_dump(mode="json"))
        code = ready.run.code
        if not code.exists():  # a point that waits in an array's listing
            code = Path(folder)
            snapshot.link_packages(code, ready.request.project)
        tool_of(code, ready.plan.python, "inspect", path, *asked, needs="torch")


def prepared_alike(one: RunConfig, other: RunConfig) -> bool:
    """Whether prepare makes the same by both configurations, so that one's record is
    the other's.
    """
    return (
        one.train.data.prepared_by() == other.train.data.prepared_by()
        and one.execution.allow_unverified_data == other.execution.allow_unverified_data
        and one.execution.max_image_pixels == other.execution.max_image_pixels
        and _begins_with(one.train) == _begins_with(other.train)
    )


def _begins_with(train: TrainConfig) -> tuple[Any, ...]:
    """What decides the weights that training begins with, where those are not drawn alone."""
    return (train.weights, train.freeze, train.model) if train.weights or train.freeze else ()


def make_data(ready: Ready, code: Path, lock: Lock | None = None) -> dict[str, Any]:
    """Makes the data set and the weights to begin with, by the code in a folder; returns the record
    of both.

    lock: as prepare_data takes it. Raises SubmitError and LockLost.
    """
    where = ready.request.folders
    where.cache.mkdir(parents=True, exist_ok=True)
    needs = "torch" if _begins_with(ready.config.train) else "numpy"
    folders = ("--data-dir", str(where.data), "--cache-dir", str(where.cache))
    result = tool_of(
        code, ready.plan.python, "prepare", ready.run.config, *folders, needs=needs, lock=lock
    )
    made: dict[str, Any] = json.loads(result.stdout)
    return made
