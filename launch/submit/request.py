"""From a job file to a running attempt, read from top to bottom: spec, placement, plan, run
directory, data, code, backend.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import json
import os
import shutil
import subprocess
import tempfile
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml

from launch import environment, words
from launch.backends import local
from launch.environment import BackendName, Folders, Machine
from launch.errors import Wrong
from launch.plan import build as planning
from launch.plan.build import Placement, Plan
from launch.runs import find, restarts
from launch.runs.find import Standing
from launch.runs.records import Unreadable
from launch.runs.verdict import conclude
from launch.spec import load as spec
from launch.spec.load import Job, JobSpec, Loaded
from launch.spec.site import Site
from launch.submit import parents, run_code, snapshot, trust
from launch.submit.snapshot import Code
from launch.text import plain
from trainer.config import micro_batches, steps, wandb_mode
from trainer.config.files.layout import RunDir, read_json, write_json, write_text
from trainer.config.files.lock import RENEW_S, Lock
from trainer.config.files.outcome import EXIT_WRONG, Outcome
from trainer.config.run import RunConfig, TrainConfig, canonical

LOCK_WAIT_S = 60.0
# libyaml's writes the same text ten times as fast
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class SubmitError(Wrong):
    """The run cannot be submitted; the message says why and what to try."""


@dataclass(frozen=True)
class Request:
    """What a person asked for."""

    job: Job
    project: Path
    site: Site
    folders: Folders
    backend: BackendName
    settings: tuple[str, ...] = ()
    new: bool = False
    strict: bool = False
    # the run's id where it is known: an existing run to go on with, a point of a sweep
    run_id: str | None = None
    after: RunDir | None = None  # the run that must be completed first
    # the id of an existing sweep to go on with, or of the one that the run is a point of
    sweep: str | None = None
    notes: tuple[str, ...] = ()  # what decides beside the job and the site file
    # the user vouches for the code that the run is frozen with, whoever owns it
    trust: bool = False


@dataclass(frozen=True)
class Ready:
    """Everything decided before anything is written. unreadable: what is wrong with the config.json
    that a point's run has.
    """

    request: Request
    spec: JobSpec
    placement: Placement
    run: RunDir
    config: RunConfig
    plan: Plan
    unreadable: str | None = None


def load(request: Request) -> tuple[Loaded, Machine]:
    """The job as it is on the chosen place, and this machine. Raises SpecError."""
    machine = environment.machine()
    without_gpu = not planning.has_gpu(request.backend, request.site, machine)
    return spec.load_points(request.job, request.settings, without_gpu=without_gpu), machine


def resolve(request: Request, job: JobSpec, machine: Machine) -> Ready:
    """Placement, configuration and plan of one run.

    Writes nothing. Raises SpecError and SubmitError.
    """
    job = planning.with_defaults(job, request.site, request.backend)
    placement = planning.place(job, request.site, machine, request.backend, strict=request.strict)
    job, placement = planning.fit_precision(job, placement, machine, request.backend)
    after = request.after or _before(request, job)
    job = parents.with_run_id(request.job, job, after)
    run_id = request.run_id or f"{request.job.name}-{job.train.digest()[:8]}"
    run = find.run_for(run_id, request.folders.runs, new=request.new)
    before, unreadable = None, None
    try:
        before = find.read_config(run) if run.path.exists() else None
    except Unreadable as error:
        if request.sweep is None:
            raise
        unreadable = error.within(run.path)  # the other points are not kept from theirs
    if before and canonical(before.train) != canonical(job.train):
        raise SubmitError(
            f"{run.path} holds a run of another configuration:\n{_difference(before, job)}\n--new"
            " starts another run"
        )
    fixed, sweep = (
        (before.execution, request.sweep or before.sweep) if before else (None, request.sweep)
    )
    config = planning.run_config(request.job.name, run.run_id, job, placement, fixed, sweep)
    destination = planning.Destination(
        request.backend,
        request.site,
        request.folders,
        python=environment.python(request.site),
        user=(os.getuid(), os.getgid()),
    )
    plan = planning.build(job, config, placement, run, destination)
    if after:
        plan = dataclasses.replace(plan, after=str(after.path))
    plan = dataclasses.replace(plan, notes=[*request.notes, *plan.notes])
    if config.execution.tracking.mode != "disabled":
        _check_wandb(plan)
    return Ready(request, job, placement, run, config, plan, unreadable)


def _check_wandb(plan: Plan) -> None:
    """Raises SubmitError where the environment that a run gets asks of wandb what
    nobody can know.
    """
    try:
        wandb_mode.asked(environment.environment(**plan.env))
    except ValueError as error:
        raise SubmitError(f"wandb: {error}") from None


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


def _before(request: Request, job: JobSpec) -> RunDir | None:
    """The run that this one waits for, as it would be submitted."""
    before = parents.waits_for(request.job, job)
    if before is None:
        return parents.existing(request.job, job, request.folders.runs)
    own = dataclasses.replace(request, job=before, settings=(), new=False, run_id=None, sweep=None)
    loaded, machine = load(own)
    return resolve(own, loaded.specs[0], machine).run


def take(path: Path, name: str, held: Lock | None = None) -> Lock:
    """The lock under which one submit of a run (or a sweep) decides; waits for another to be done.
    held: one of this process, which renews and frees the new one with itself. Raises SubmitError.
    """
    lock = Lock(path)
    end = time.monotonic() + LOCK_WAIT_S
    while not acquire(lock, name, held):
        if time.monotonic() > end:
            raise SubmitError(
                f"another submit of {name} has not ended within {LOCK_WAIT_S:.0f} s: {lock.owner()}"
            )
        time.sleep(0.05)
    return lock


def acquire(lock: Lock, name: str, held: Lock | None = None) -> bool:
    try:
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        return held.acquire_also(lock) if held else lock.acquire()
    except OSError as error:
        raise SubmitError(
            f"{lock.path.parent} cannot be written ({error.strerror}): free the disk, or name"
            f" another place for {name} by --runs-dir or paths.runs"
        ) from None


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
        _check_trust(ready)
    if left_no_word:
        left_no_word.write(run.outcome)

    if run_code.differs(run, code):
        _say_which_code(say, outcome, keep=keep)
    if not keep and shared:
        snapshot.freeze_shared(code, run)
    elif not keep:
        _freeze(run, code, image, say)

    if before.state != "new":
        run.cancel.unlink(missing_ok=True)
    run.job.write_text(job_text(ready.spec))
    config = _config_text(ready)
    if keep:
        config = json.dumps(known_to(read_json(run.config), json.loads(config)), indent=2)
    write_text(run.config, config + "\n", sync=not shared)
    if snapshot.on_path(run.code) != run.packages:
        ready = dataclasses.replace(ready, plan=planning.with_older_code(ready.plan, run))
    write_json(run.plan, plan_record(ready, restarts.next_generation(run)), sync=not shared)
    return ready


def _freeze(run: RunDir, code: Code, image: str | None, say: Callable[[str], None]) -> None:
    """Copies the code into the run's directory, and says what of it was left out."""
    snapshot.freeze(code, run, image)
    for note in code.notes:
        say(note)


def _check_trust(ready: Ready) -> None:
    """Raises SubmitError where the run's frozen code may be somebody else's."""
    request = ready.request
    try:
        trust.check(ready.run, request.site.trusted, once=request.trust)
    except trust.DistrustError as error:
        raise SubmitError(str(error)) from None


def _say_which_code(say: Callable[[str], None], outcome: Outcome | None, *, keep: bool) -> None:
    """Of a run that was frozen with other code than the user's. outcome: how it ended."""
    if keep:
        say(
            "continues with the code that it was submitted with; yours has changed since (--new"
            " trains with yours)"
        )
    elif outcome:
        say("takes the code as it is now, which has changed since the failed attempt")


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
            f"{left_out} picture(s) cannot be used and are left out; {environment.shown(run.data_record)}"
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


def tool(
    run: RunDir, python: str, name: str, *arguments: str, needs: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m trainer.tools.<name> RUN_DIR/config.json` with the run's own code, as
    `tool_of` does.
    """
    if not run.plan.exists() and not run.code.exists():
        raise SubmitError(f"{run.run_id} has not begun: there is nothing of it yet")
    return tool_of(run.code, python, name, run.config, *arguments, needs=needs)


def tool_of(
    code: Path,
    python: str,
    name: str,
    config: Path,
    *arguments: str,
    needs: str,
    lock: Lock | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m trainer.tools.<name> config.json` with the code in a folder
    (snapshot.on_path). needs: a module that it imports.

    lock: of this process, to be renewed meanwhile. Raises SubmitError: what the tool says to a
    person, or its last lines. Raises LockLost.
    """
    # earlier versions had the tools in trainer itself, and a run may be frozen with one
    module = snapshot.module_of(code, f"trainer.tools.{name}", f"trainer.{name}")
    if module is None:
        raise SubmitError(
            f"the code that {config.parent.name} is frozen with ({code}) has no"
            f" trainer.tools.{name}: it is older, or gone"
        )
    if not local.python_has(python, needs):
        raise SubmitError(
            f"{python} has no {needs}, which {module} needs: install the extra 'train' there,"
            " or name another `python:` in the site file"
        )
    argv = [python, "-P", "-m", module, str(config), *arguments]
    env = environment.environment(PYTHONPATH=str(snapshot.on_path(code)), PYTHONSAFEPATH="1")
    result = _run(argv, env, lock)
    if result.returncode == EXIT_WRONG:  # a message for a person
        raise SubmitError(result.stderr.strip())
    if result.returncode:
        tail = "\n".join(result.stderr.strip().splitlines()[-8:])
        raise SubmitError(f"{module} failed ({result.returncode}):\n  {' '.join(argv)}\n{tail}")
    return result


def _run(
    argv: list[str], env: dict[str, str], lock: Lock | None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, and renews a lock of this process meanwhile: a download may
    outlast its lease.

    Raises LockLost, once the command is killed.
    """
    with subprocess.Popen(
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=RENEW_S)
                    return subprocess.CompletedProcess(argv, process.returncode, out, err)
                except subprocess.TimeoutExpired:
                    if lock is not None:
                        lock.renew()
        except BaseException:  # Ctrl-C too
            process.kill()
            raise


def ask_of_job(
    request: Request, job: JobSpec, machine: Machine, name: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m trainer.<name>` on a job's configuration before there is a run, with the
    project's code.

    Raises SubmitError, and SpecError.
    """
    config = resolve(request, job, machine).config
    with tempfile.TemporaryDirectory(prefix="batchyard-") as folder:
        path = Path(folder) / "config.json"
        write_json(path, config.model_dump(mode="json"))
        snapshot.link_packages(Path(folder), request.project)
        return tool_of(
            Path(folder), environment.python(request.site), name, path, *arguments, needs="torch"
        )


def python_of(run: RunDir, used: Site) -> str:
    """The Python that the run was submitted with; where it never was, the site's."""
    return str((read_json(run.plan) or {}).get("python") or environment.python(used))


def _difference(before: RunConfig, job: JobSpec) -> str:
    old, new = (
        json.dumps(canonical(t), indent=1, sort_keys=True).splitlines()
        for t in (before.train, job.train)
    )
    return "\n".join(
        line
        for line in difflib.unified_diff(old, new, "the run's", "yours", lineterm="", n=0)
        if line[:2] != "@@"
    )


def slurm_is_here_unasked(request: Request, site_file: Path | None, asked: str | None) -> bool:
    """Whether sbatch is on PATH although nobody chose a backend: PATH is never a reason, and that
    is said.
    """
    return (
        asked is None
        and site_file is None
        and request.backend == "local"
        and shutil.which("sbatch") is not None
    )


def result_line(outcome: Outcome) -> str:
    """How it ended, in one line."""
    line = f"{outcome.status}" + (
        f" ({outcome.verdict})" if outcome.verdict != outcome.status else ""
    )
    if outcome.test_accuracy is not None:
        line += f": test accuracy {100 * outcome.test_accuracy:.2f} %"
        if (mean_iou := outcome.extra.get("test_mean_iou")) is not None:
            line += f", mean IoU {100 * mean_iou:.2f} %"
    elif outcome.status == "completed" and "test_not_finite" in outcome.extra:
        spoilt = words.plural(outcome.extra["test_not_finite"], "test sample")
        line += f": no test figure, since the outputs of {spoilt} are not finite,"
    elif (loss := outcome.extra.get("test_loss")) is not None:
        line += f": test loss {words.number(loss, 4)}"
    if outcome.global_step is not None:
        line += f" after {outcome.global_step} steps"
    if outcome.status != "completed" and outcome.cause:
        rank = f"rank {outcome.rank}: " if outcome.rank is not None else ""
        line += f": {rank}{outcome.cause}"
    return plain(line)
