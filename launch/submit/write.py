"""A run's directory is written: its code, job, configuration and plan."""

from __future__ import annotations

import dataclasses
import functools
import json
import textwrap
from collections.abc import Callable
from typing import Any

import yaml

from launch.plan import build as planning
from launch.runs import frozen_code, restarts
from launch.runs.state import Standing
from launch.runs.verdict import conclude
from launch.spec.job import JobSpec
from launch.submit import run_code, snapshot
from launch.submit.data import prepare_data
from launch.submit.request import Ready, check_trust, freeze, say_which_code
from launch.submit.snapshot import Code
from trainer.config.files.json_files import read_json, write_json, write_text
from trainer.config.files.lock import Lock

# libyaml's writes the same text ten times as fast
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


def prepare_run(
    ready: Ready,
    before: Standing,
    code: Code,
    image: str | None,
    say: Callable[[str], None],
    lock: Lock,
) -> Ready:
    """Makes the run ready to start: its directory and its data. image: name and digest, for the
    record.

    Returns it as it is run: with a plan that fits code which it may have kept. lock: the run's,
    which is renewed meanwhile. Raises SubmitError, and LockLost where another submit has taken the
    run.
    """
    ready = write_run(ready, before, code, image, say)
    prepare_data(ready, say, lock=lock)
    return ready


def write_run(
    ready: Ready,
    before: Standing,
    code: Code,
    image: str | None,
    say: Callable[[str], None],
    *,
    shared: bool = False,
) -> Ready:
    """Writes the run directory: code, job, configuration and plan.

    Returns what was written. Raises SubmitError.

    shared: `code` is a copy that many runs are linked to, for which the caller syncs the disk once.
    """
    run = ready.run
    outcome = before.outcome
    left_no_word = None
    if before.state == "dead" and before.attempt and not before.attempt.outcome.exists():
        left_no_word = conclude(run, before.attempt)  # judged by the other evidence, once
        outcome = left_no_word
    keep = run_code.is_kept(run, outcome)
    if keep:
        check_trust(ready)
    if left_no_word:
        left_no_word.write(run.outcome)

    if run_code.differs(run, code):
        say_which_code(say, outcome, keep=keep)
    if not keep and shared:
        snapshot.freeze_shared(code, run)
    elif not keep:
        freeze(run, code, image, say)

    if before.state != "new":
        run.cancel.unlink(missing_ok=True)
    run.job.write_text(job_text(ready.spec))
    config = _config_text(ready)
    if keep:
        config = json.dumps(known_to(read_json(run.config), json.loads(config)), indent=2)
    write_text(run.config, config + "\n", sync=not shared)
    if frozen_code.on_path(run.code) != run.packages:
        ready = dataclasses.replace(ready, plan=planning.with_older_code(ready.plan, run))
    write_json(run.plan, plan_record(ready, restarts.next_generation(run)), sync=not shared)
    return ready


def plan_record(ready: Ready, generation: int) -> dict[str, Any]:
    """plan.json: the plan, and which submit of the run it is of."""
    return {**vars(ready.plan), "generation": generation}


def begins_in_array(ready: Ready) -> bool:
    """Whether the point's first start is still to come: until then its array has what its directory
    lacks (launch.runs.array_listing). Where it waits for another run its plan tells which, and is
    written now.
    """
    return ready.plan.after is None and not ready.run.plan.exists()


def write_waiting(ready: Ready, before: Standing) -> None:
    """Writes what the directory of such a point has before it begins. Raises OSError."""
    if before.state != "new":
        ready.run.cancel.unlink(missing_ok=True)
    write_text(ready.run.config, _config_text(ready) + "\n", sync=False)


def _config_text(ready: Ready) -> str:
    # quicker than json is, and a sweep has many
    return ready.config.model_dump_json(indent=2, ensure_ascii=True)


def job_text(spec: JobSpec) -> str:
    """job.yaml. Key by key, for the points of a sweep have nearly all of them in common.

    Which run `after` is stands in the plan; the figures of others are of the job, and may be of
    another point of its sweep.
    """
    job = spec.model_dump(mode="json", exclude_unset=True, exclude={"after", "published"})
    train = "".join(_yaml(key, json.dumps(value)) for key, value in job["train"].items())
    below = f"train:\n{textwrap.indent(train, '  ')}"
    return "".join(
        below if key == "train" else _yaml(key, json.dumps(value)) for key, value in job.items()
    )


@functools.lru_cache
def _yaml(key: str, value: str) -> str:
    return str(yaml.dump({key: json.loads(value)}, Dumper=DUMPER, sort_keys=False))


def known_to(before: Any, now: Any) -> Any:
    """`now` without the keys that `before` lacks: settings that are younger than the frozen code,
    which would refuse them.
    """
    if not isinstance(before, dict) or not isinstance(now, dict):
        return now
    return {key: known_to(before[key], value) for key, value in now.items() if key in before}
