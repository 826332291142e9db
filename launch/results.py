"""What runs measured beside what others print: the rows of `batchyard results`, from job files and run directories. No torch."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from pydantic import ValidationError

from launch import rundir, spec
from launch.published import LOSSES, LOWER_IS_BETTER, Published
from launch.report import points
from launch.report.words import NONE, finite, number, plural
from launch.spec import Job
from launch.sweep import Point
from trainer.config.layout import RunDir, read_json, read_jsonl
from trainer.config.run import RunConfig, TrainConfig, canonical

Verdict = Literal["reached", "falls short", "not comparable", "not measured", "none printed"]
SEED = "train.seed"
RUN_ID_END = re.compile(r"-[0-9a-f]{8}(\.\d+)?$")
COLOURS: dict[Verdict, str | None] = {
    "reached": "green", "falls short": "red", "not comparable": "yellow", "not measured": None, "none printed": None,
}  # fmt: skip
UNPRINTED = Published.model_construct(source="")  # of a job that names no figure, ours are told alone:
MAIN = {
    "classification": ["test_accuracy"], "regression": ["train_loss", "test_loss"], "segmentation": ["pixel_accuracy", "mean_iou"],
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A printed figure and ours. Fractions lie between 0 and 1, losses are as the task counts them.

    point: of a sweep, as behind --set; label: as a person reads it; published: None where nobody prints one; tolerance: how far off
    still reaches it; values: ours, one a seed; runs: their run_ids; epochs: 5, or 3 of 5; why: what makes the two not
    comparable; notes: what else there is to say.
    """

    job: str
    job_file: Path
    point: str
    label: str
    figure: str
    published: float | None
    tolerance: float
    source: str
    values: list[float]
    seeds: list[int]
    runs: list[str]
    epochs: str
    hardware: str
    why: list[str]
    notes: list[str]
    in_percent: bool
    lower_is_better: bool

    @property
    def mean(self) -> float | None:
        return mean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Over seeds, of n - 1; None of fewer than two."""
        return stdev(self.values) if len(self.values) > 1 else None

    @property
    def short_by(self) -> float:
        """How much worse than the printed figure the mean is; negative where it is better."""
        return ((self.published or 0.0) - (self.mean or 0.0)) * (-1 if self.lower_is_better else 1)

    @property
    def falls_short(self) -> bool:
        """By more than the tolerance. A difference of two decimals is not exact: what lies on the tolerance's edge is within it."""
        return self.published is not None and self.short_by > self.tolerance * (1 + 1e-9)

    @property
    def verdict(self) -> Verdict:
        if not self.values:
            return "not measured"
        if self.published is None:
            return "none printed"
        if self.why:
            return "not comparable"
        return "falls short" if self.falls_short else "reached"

    @property
    def standing(self) -> str:
        """How ours stands to the figure, also where the two are not comparable; empty where the verdict says it all."""
        if not self.values or not self.falls_short:
            return "reached" if self.verdict == "not comparable" else ""
        by = f"{100 * self.short_by:.2f} points" if self.in_percent else number(self.short_by)
        within = self.deviation is not None and self.short_by <= self.deviation
        return f"{'short ' if self.why else ''}by {by}" + (", within the deviation" if within else "")

    @property
    def remarks(self) -> list[str]:
        """How ours stands to the figure, the verdict's reasons, and the notes."""
        return [*([self.standing] if self.standing else []), *self.why, *self.notes]

    @property
    def measured(self) -> str:
        """3 seeds, 15 epochs, 2 threads of AMD EPYC; empty where it was not."""
        epochs = "1 epoch" if self.epochs == "1" else f"{self.epochs} epochs"
        return f"{plural(len(self.values), 'seed')}, {epochs}, {self.hardware}" if self.values else ""

    @property
    def footnotes(self) -> list[str]:
        """What many rows share: the verdict's reasons, the notes, the source."""
        return [note for note in (*self.why, *self.notes, self.source) if note]

    def shown(self, value: float | None) -> str:
        """A value of the row's figure: 82.3 %, or 0.0002."""
        if value is None:
            return NONE
        return f"{Decimal(str(value)) * 100:f}".rstrip("0").rstrip(".") + " %" if self.in_percent else number(value, 4)

    def to_json(self) -> dict[str, Any]:
        derived = {"mean": self.mean, "deviation": self.deviation, "verdict": self.verdict, "remarks": self.remarks,
                   "reaches": not self.falls_short if self.values and self.published is not None else None}
        return {**asdict(self), "job_file": str(self.job_file), **derived}


@dataclass(frozen=True)
class Run:
    """A run, as far as it matters which one it is.

    unverified: how many files of its data differ from the published checksums; None: it was allowed to take such, and its record is
    of a time that did not count them.
    """

    run: RunDir
    config: RunConfig
    unverified: int | None

    @property
    def length(self) -> tuple[int, float]:
        return length(self.config.train)

    @cached_property
    def state(self) -> str:
        return rundir.standing(self.run).state

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return read_jsonl(self.run.metrics)

    def evaluations(self, split: str) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("kind") == "eval" and row.get("split") == split]


@dataclass(frozen=True)
class Group:
    """Runs of one configuration that differ in their seed alone. why: what makes them none of the job as it is written."""

    runs: list[Run]
    why: list[str]
    notes: list[str]


def read_runs(runs: Path) -> tuple[dict[str, list[Run]], list[str]]:
    """The runs by `key`, the oldest first; and the run_ids of those whose config.json another version wrote.

    An older run that was allowed unverified data had the published ones where another run proves it: with the same bytes, verified.
    """
    read, unread = [], []
    for run in rundir.all_runs(runs):
        try:
            config = rundir.read_config(run)
        except ValidationError:
            unread.append(run.run_id)
            continue
        if config:
            data = read_json(run.data_record) or {}
            read.append((run, config, unverified(config, data), data.get("sha256")))
    proven = {sha256 for *_, count, sha256 in read if count == 0}
    found: dict[str, list[Run]] = {}
    for run, config, count, sha256 in read:
        found.setdefault(key(config.train), []).append(Run(run, config, 0 if count is None and sha256 in proven else count))
    return found, unread


def unverified(config: RunConfig, data: dict[str, Any]) -> int | None:
    """How many files of its data differ from the published checksums; None: not known. data: the run's data.json."""
    if not config.execution.allow_unverified_data:
        return 0
    return len(data["unverified"]) if "unverified" in data else None


def key(train: TrainConfig) -> str:
    """Equal for runs that differ in the seed and in how long they train alone."""
    kept = {k: v for k, v in canonical(train).items() if k not in ("seed", "epochs", "max_steps")}
    if "run" in kept.get("weights", {}):  # a run has the run_id of what it began with, where its job may have that one's job
        kept["weights"] = {**kept["weights"], "run": RUN_ID_END.sub("", kept["weights"]["run"])}
    return json.dumps(kept, sort_keys=True)


def length(train: TrainConfig) -> tuple[int, float]:
    """Epochs, and steps where they are limited."""
    return train.epochs, train.max_steps or float("inf")


def rows(job: Job, runs: dict[str, list[Run]]) -> list[Row]:
    """The rows of a job: for each printed figure, each configuration that it is of and each way in which that was run.

    Where none is printed, what was measured; of a search nothing, whose points are chosen as they begin. Raises SpecError.
    """
    loaded, on_cpu = (spec.load_points(job, without_gpu=without_gpu) for without_gpu in (False, True))
    found: list[Row] = []
    if loaded.search:
        return found
    printed = loaded.specs[0].published
    for published in printed or [UNPRINTED]:
        seen = set()
        for point, with_gpu, without in zip(loaded.points, loaded.specs, on_cpu.specs, strict=True):
            configuration = key(with_gpu.train), length(with_gpu.train)
            if not published.is_of(point) or configuration in seen:  # points that differ in their seed are one row
                continue
            seen.add(configuration)
            named = Point({axis: value for axis, value in point.axes.items() if axis != SEED})
            figures = published.figures() if printed else dict.fromkeys(MAIN[with_gpu.train.data.task])
            for group in groups(with_gpu.train, without.train, runs) or ([Group([], [], [])] if printed else []):
                found += _rows(job, named, published, figures, group)
    return found


def groups(train: TrainConfig, fallback: TrainConfig, runs: dict[str, list[Run]]) -> list[Group]:
    """The job's runs as it is written, and those of its fallback; where neither was run to its end, what came nearest to it."""
    ways: dict[str, TrainConfig] = {"": train} | ({"its fallback, not in full": fallback} if fallback != train else {})
    found: list[Group] = []
    parts: list[Group] = []
    for told, wanted in ways.items():
        why = [told] if told else []
        alike = [run for k in _keys(wanted) for run in runs.get(k, [])]
        whole = [run for run in alike if run.length == length(wanted)]
        completed = _one_a_seed(run for run in whole if run.state == "completed")
        if completed:
            others = {run.config.train.seed: run.state for run in whole} | {r.config.train.seed: "completed" for r in completed}
            count = Counter(state for state in others.values() if state != "completed")
            notes = [f"{plural(number, 'more seed')} {state}" for state, number in sorted(count.items())]
            found.append(Group(completed, why, notes))
        shorter = [run for run in alike if run.length <= length(wanted) and run.run.metrics.exists()]
        if shorter and not parts:
            longest = max(run.length for run in shorter)
            cut = longest < length(wanted)
            best = [run for run in shorter if run.length == longest]
            done = [run for run in best if run.state == "completed"] or best
            parts = [Group(_one_a_seed(done), [*why, *(["cut short"] if cut else [])], [])]
    return found or parts


def _keys(train: TrainConfig) -> list[str]:
    """What the job's runs go by: a CPU that has no bf16 takes fp32 (launch.plan)."""
    in_fp32 = [train.model_copy(update={"precision": "fp32"})] if train.precision == "bf16" else []
    return [key(t) for t in (train, *in_fp32)]


def _one_a_seed(runs: Iterable[Run]) -> list[Run]:
    """The newest of each seed, in the order of the seeds."""
    newest = {run.config.train.seed: run for run in runs}
    return [newest[seed] for seed in sorted(newest)]


def _rows(job: Job, point: Point, published: Published, figures: dict[str, Any], group: Group) -> list[Row]:
    found = []
    for name, printed in figures.items():
        for of_class, value in printed.items() if isinstance(printed, dict) else [(None, printed)]:
            measured = [(run, v) for run in group.runs if (v := measure(run, name, published.epoch, of_class)) is not None]
            found.append(_row(job, point, published, name, of_class, value, measured, group))
    return found


def _row(
    job: Job, point: Point, published: Published, name: str, of_class: str | None, value: float | None,
    measured: list[tuple[Run, float]], group: Group,
) -> Row:
    runs = [run for run, _ in measured]
    figure = f"test accuracy of {of_class}" if of_class else name.replace("_", " ").replace("iou", "IoU")
    stand_in = [f"stand-in: {published.stand_in}"] if published.stand_in else []
    return Row(
        job=job.name,
        job_file=job.path,
        point=str(point),
        label=points.told(point.axes),
        figure=figure + (f", epoch {published.epoch}" if published.epoch else ""),
        published=value,
        tolerance=published.tolerance or (rounding(value) if value is not None else 0.0),
        source=published.source,
        values=[v for _, v in measured],
        seeds=[run.config.train.seed for run in runs],
        runs=[run.run.run_id for run in runs],
        epochs=", ".join(dict.fromkeys(map(epochs, runs))),
        hardware=", ".join(dict.fromkeys(map(hardware, runs))),
        why=[*stand_in, *group.why, *dict.fromkeys(why for run in runs for why in not_in_full(run))] if runs else [],
        notes=group.notes if runs else [],
        in_percent=name not in LOSSES,
        lower_is_better=name in LOWER_IS_BETTER,
    )


def rounding(value: float) -> float:
    """Half of the last digit that a printed figure has (a zero at its end does not count): 0.0005 of 0.823."""
    exponent = Decimal(str(value)).as_tuple().exponent
    return 0.5 * float(10 ** min(0, int(exponent)))


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
    wanted = run.config.train.epochs
    reached = max((int(row["epoch"]) for row in run.rows[-1:]), default=0)
    return f"{wanted}" if reached == wanted else f"{reached} of {wanted}"


def hardware(run: Run) -> str:
    """8 x NVIDIA H100 80GB HBM3; 2 threads of AMD EPYC, of two ranks 2 x 1 thread. By the newest attempt, which may have had fewer
    ranks than the job asks for. Older attempts tell no name: 8 GPUs, 2 threads."""
    how, attempts = run.config.execution, run.run.all_attempts()
    record, told = ((read_json(path) or {}) for path in (attempts[-1].record, attempts[-1].hardware)) if attempts else ({}, {})
    ranks, name = record.get("world_size") or how.ranks, told.get("name")
    if how.device == "cuda":
        return f"{ranks} x {name}" if name else plural(ranks, "GPU")
    threads = (f"{ranks} x " if ranks > 1 else "") + plural(how.threads_per_rank, "thread")
    return f"{threads} of {name}" if name else threads


def measure(run: Run, name: str, epoch: int | None, of_class: str | None = None) -> float | None:
    """A figure of a run after that epoch, or after its last one; None where it was not measured then."""
    if name == "class_accuracy":
        return _class_accuracy(run, of_class)
    if name in ("loss_book", "loss_book_running"):
        return _loss_book(run, epoch, running=name == "loss_book_running")
    if name == "highest_test_accuracy":
        return max((a for row in run.evaluations("test") if (a := finite(row.get("accuracy"))) is not None), default=None)
    split, _, what = name.partition("_") if name.startswith(("train_", "test_")) else ("test", "", name)
    what = {"pixel_accuracy": "accuracy", "error": "accuracy"}.get(what, what)
    if split == "train" and run.config.train.data.task != "regression":
        value = _epoch_mean(run, what, epoch)
    else:
        found = [row for row in run.evaluations(split) if epoch in (None, row.get("epoch"))]
        value = finite(found[-1].get(what)) if found else None
    return 1 - value if value is not None and name.endswith("_error") else value


def _epoch_mean(run: Run, what: str, epoch: int | None) -> float | None:
    """The mean over the samples of an epoch, or of the last one."""
    found = [(v, row["samples"]) for row in _train_rows(run, epoch) if (v := finite(row.get(what))) is not None]
    return sum(v * n for v, n in found) / sum(n for _, n in found) if found else None


def _train_rows(run: Run, epoch: int | None) -> list[dict[str, Any]]:
    """Those of an epoch, or of the last one: no train row is of two epochs."""
    train = [row for row in run.rows if row.get("kind") == "train"]
    return [row for row in train if row["epoch"] == (epoch or train[-1]["epoch"])]


def _loss_book(run: Run, epoch: int | None, *, running: bool) -> float | None:
    """The loss column of Dive into Deep Learning's PyTorch edition (train_ch3 and train_ch5 as their output was printed; train of
    chapter 9): the sum of an epoch's batch means, divided by its samples; or, running, by all batches since the first epoch.

    The mean over samples stands for that over batches: a last batch of fewer samples makes less than the printed digits.
    """
    mean_loss, rows = _epoch_mean(run, "loss", epoch), _train_rows(run, epoch)
    if mean_loss is None:
        return None
    now = int(rows[-1]["epoch"])
    if running:
        return mean_loss / now
    before = _train_rows(run, now - 1) if now > 1 else []  # it has the step at which this epoch began
    batches = int(rows[-1]["global_step"]) - (int(before[-1]["global_step"]) if before else 0)
    return mean_loss * batches / sum(float(row["samples"]) for row in rows)


def _class_accuracy(run: Run, of_class: str | None) -> float | None:
    found = read_json(run.run.evaluation("test")) or {}
    if of_class not in found.get("classes", []):
        return None
    i = found["classes"].index(of_class)
    return found["correct"][i] / found["samples"][i] if found["samples"][i] else None
