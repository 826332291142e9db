"""What runs measured beside what others print: the rows of `batchyard results`. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Literal

from launch.report import sweep_data
from launch.results.measurements import Run, epochs, hardware, key, length, measure, not_in_full
from launch.spec import load
from launch.spec.job import Job
from launch.spec.published import LOSSES, LOWER_IS_BETTER, Published
from launch.spec.sweep import Point
from launch.words import NONE, number, plural
from trainer.config.run import TrainConfig

Verdict = Literal["reached", "falls short", "not comparable", "not measured", "none printed"]
SEED = "train.seed"
COLOURS: dict[Verdict, str | None] = {
    "reached": "green",
    "falls short": "red",
    "not comparable": "yellow",
    "not measured": None,
    "none printed": None,
}
# of a job that names no figure, ours are told alone:
UNPRINTED = Published.model_construct(source="")
MAIN = {
    "classification": ["test_accuracy"],
    "regression": ["train_loss", "test_loss"],
    "segmentation": ["pixel_accuracy", "mean_iou"],
}


@dataclass(frozen=True)
class Row:
    """A printed figure and ours. Fractions lie between 0 and 1, losses are as the task counts them.

    point: of a sweep, as behind --set; label: as a person reads it; published: None where nobody
    prints one; tolerance: how far off still reaches it; values: ours, one a seed; runs: their
    run_ids; epochs: 5, or 3 of 5; why: what makes the two not comparable; notes: what else there is
    to say.
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
        """By more than the tolerance.

        A difference of two decimals is not exact: what lies on the tolerance's edge is within it.
        """
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
        """How ours stands to the figure, also where the two are not comparable; empty where the
        verdict says it all.
        """
        if not self.values or not self.falls_short:
            return "reached" if self.verdict == "not comparable" else ""
        by = f"{100 * self.short_by:.2f} points" if self.in_percent else number(self.short_by)
        within = self.deviation is not None and self.short_by <= self.deviation
        return f"{'short ' if self.why else ''}by {by}" + (
            ", within the deviation" if within else ""
        )

    @property
    def remarks(self) -> list[str]:
        """How ours stands to the figure, the verdict's reasons, and the notes."""
        return [*([self.standing] if self.standing else []), *self.why, *self.notes]

    @property
    def measured(self) -> str:
        """3 seeds, 15 epochs, 2 threads of AMD EPYC; empty where it was not."""
        epochs = "1 epoch" if self.epochs == "1" else f"{self.epochs} epochs"
        return (
            f"{plural(len(self.values), 'seed')}, {epochs}, {self.hardware}" if self.values else ""
        )

    @property
    def footnotes(self) -> list[str]:
        """What many rows share: the verdict's reasons, the notes, the source."""
        return [note for note in (*self.why, *self.notes, self.source) if note]

    def shown(self, value: float | None) -> str:
        """A value of the row's figure: 82.3 %, or 0.0002."""
        if value is None:
            return NONE
        return (
            f"{Decimal(str(value)) * 100:f}".rstrip("0").rstrip(".") + " %"
            if self.in_percent
            else number(value, 4)
        )

    def to_json(self) -> dict[str, Any]:
        derived = {
            "mean": self.mean,
            "deviation": self.deviation,
            "verdict": self.verdict,
            "remarks": self.remarks,
            "reaches": not self.falls_short if self.values and self.published is not None else None,
        }
        return {**asdict(self), "job_file": str(self.job_file), **derived}


@dataclass(frozen=True)
class Group:
    """Runs of one configuration that differ in their seed alone. why: what makes them none of the
    job as it is written.
    """

    runs: list[Run]
    why: list[str]
    notes: list[str]


def rows(job: Job, runs: dict[str, list[Run]]) -> list[Row]:
    """The rows of a job: for each printed figure, each configuration that it is of and each way in
    which that was run.

    Where none is printed, what was measured; of a search nothing, whose points are chosen as they
    begin. Raises SpecError.
    """
    loaded, on_cpu = (
        load.load_points(job, without_gpu=without_gpu) for without_gpu in (False, True)
    )
    found: list[Row] = []
    if loaded.search:
        return found
    printed = loaded.specs[0].published
    for published in printed or [UNPRINTED]:
        seen = set()
        for point, with_gpu, without in zip(loaded.points, loaded.specs, on_cpu.specs, strict=True):
            configuration = key(with_gpu.train), length(with_gpu.train)
            # points that differ in their seed are one row
            if not published.is_of(point) or configuration in seen:
                continue
            seen.add(configuration)
            named = Point({axis: value for axis, value in point.axes.items() if axis != SEED})
            figures = (
                published.figures() if printed else dict.fromkeys(MAIN[with_gpu.train.data.task])
            )
            for group in groups(with_gpu.train, without.train, runs) or (
                [Group([], [], [])] if printed else []
            ):
                found += _rows(job, named, published, figures, group)
    return found


def groups(train: TrainConfig, fallback: TrainConfig, runs: dict[str, list[Run]]) -> list[Group]:
    """The job's runs as it is written, and those of its fallback; where neither was run to its end,
    what came nearest to it.
    """
    ways: dict[str, TrainConfig] = {"": train} | (
        {"its fallback, not in full": fallback} if fallback != train else {}
    )
    found: list[Group] = []
    parts: list[Group] = []
    for told, wanted in ways.items():
        why = [told] if told else []
        alike = [run for k in _keys(wanted) for run in runs.get(k, []) if run.is_readable()]
        whole = [run for run in alike if run.length == length(wanted)]
        completed = _one_a_seed(run for run in whole if run.state == "completed")
        if completed:
            others = {run.config.train.seed: run.state for run in whole} | {
                r.config.train.seed: "completed" for r in completed
            }
            count = Counter(state for state in others.values() if state != "completed")
            notes = [
                f"{plural(number, 'more seed')} {state}" for state, number in sorted(count.items())
            ]
            found.append(Group(completed, why, notes))
        shorter = [
            run for run in alike if run.length <= length(wanted) and run.run.metrics.exists()
        ]
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


def _rows(
    job: Job, point: Point, published: Published, figures: dict[str, Any], group: Group
) -> list[Row]:
    wanted: dict[tuple[str, str | None], float | None] = {}
    for name, printed in figures.items():
        of_classes = printed if isinstance(printed, dict) else {None: printed}
        wanted |= {(name, of_class): value for of_class, value in of_classes.items()}

    # run by run, for a run's rows are read once where it is asked for all figures in turn
    measured: dict[tuple[str, str | None], list[tuple[Run, float]]] = {
        figure: [] for figure in wanted
    }
    for run in group.runs:
        for name, of_class in wanted:
            value = measure(run, name, published.epoch, of_class)
            if value is not None:
                measured[name, of_class].append((run, value))

    return [
        _row(
            job, point, published, Figure(name, of_class, printed, measured[name, of_class]), group
        )
        for (name, of_class), printed in wanted.items()
    ]


@dataclass(frozen=True)
class Figure:
    """A published figure and what runs measured of it. of_class: of that class alone."""

    name: str
    of_class: str | None
    published: float | None
    measured: list[tuple[Run, float]]


def _row(job: Job, point: Point, published: Published, figure: Figure, group: Group) -> Row:
    name, of_class, value = figure.name, figure.of_class, figure.published
    runs = [run for run, _ in figure.measured]
    label = (
        f"test accuracy of {of_class}" if of_class else name.replace("_", " ").replace("iou", "IoU")
    )
    stand_in = [f"stand-in: {published.stand_in}"] if published.stand_in else []
    return Row(
        job=job.name,
        job_file=job.path,
        point=str(point),
        label=sweep_data.told(point.axes),
        figure=label + (f", epoch {published.epoch}" if published.epoch else ""),
        published=value,
        tolerance=published.tolerance or (rounding(value) if value is not None else 0.0),
        source=published.source,
        values=[v for _, v in figure.measured],
        seeds=[run.config.train.seed for run in runs],
        runs=[run.run.run_id for run in runs],
        epochs=", ".join(dict.fromkeys(map(epochs, runs))),
        hardware=", ".join(dict.fromkeys(map(hardware, runs))),
        why=(
            [*stand_in, *group.why, *dict.fromkeys(why for run in runs for why in not_in_full(run))]
            if runs
            else []
        ),
        notes=group.notes if runs else [],
        in_percent=name not in LOSSES,
        lower_is_better=name in LOWER_IS_BETTER,
    )


def rounding(value: float) -> float:
    """Half of the last digit that a printed figure has (a zero at its end does not count): 0.0005
    of 0.823.
    """
    exponent = Decimal(str(value)).as_tuple().exponent
    return 0.5 * float(10 ** min(0, int(exponent)))
