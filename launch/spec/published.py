"""`published` in a job file: figures that others print of the same experiment, with their sources.

Pure: reads no file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from launch.spec.sweep import Point, text
from launch.spec.yaml_tree import Path_, Problem, Tree
from trainer.config.run import TrainConfig
from trainer.config.strict import Strict

Fraction = Annotated[float, Field(ge=0, le=1)]
Loss = Annotated[float, Field(ge=0)]

# What is measured of each task; of the losses and errors the lower one is better.
OF_TASK = {
    "classification": (
        "test_accuracy",
        "highest_test_accuracy",
        "test_error",
        "test_loss",
        "train_accuracy",
        "train_error",
        "train_loss",
        "loss_book",
        "loss_book_running",
        "class_accuracy",
    ),
    "regression": ("test_loss", "train_loss"),
    "segmentation": ("pixel_accuracy", "mean_iou", "test_loss", "train_loss"),
}
# numbers of any size; all others lie between 0 and 1
LOSSES = ("test_loss", "train_loss", "loss_book", "loss_book_running")
LOWER_IS_BETTER = ("test_error", "train_error", *LOSSES)
OF_THE_END = ("highest_test_accuracy", "class_accuracy")


class Published(Strict):
    """Figures of one source.

    Fractions lie between 0 and 1, as they are measured: after the last epoch, or after `epoch`.
    """

    source: str = Field(min_length=1, description="who prints the figures, and where")
    test_accuracy: Fraction | None = None
    highest_test_accuracy: Fraction | None = Field(None, description="of all evaluations")
    test_error: Fraction | None = Field(None, description="1 - test_accuracy")
    test_loss: Loss | None = None
    train_accuracy: Fraction | None = Field(
        None, description="mean over the epoch's steps, as they trained"
    )
    train_error: Fraction | None = Field(None, description="1 - train_accuracy")
    train_loss: Loss | None = Field(
        None, description="mean over the epoch's steps; of a regression, of the train rows after it"
    )
    loss_book: Loss | None = Field(
        None, description="train_loss, divided once more by the batch size"
    )
    loss_book_running: Loss | None = Field(
        None, description="train_loss, divided by the number of epochs so far"
    )
    pixel_accuracy: Fraction | None = None
    mean_iou: Fraction | None = None
    class_accuracy: dict[str, Fraction] | None = Field(
        None, min_length=1, description="class: test accuracy of its samples"
    )
    epoch: int | None = Field(
        None, ge=1, description="after which epoch the figures are printed; null: the last"
    )
    at: dict[str, Any] = Field(
        {}, description="axis: value of the sweep's points that the figures are of; none: of all"
    )
    tolerance: float | None = Field(
        None, gt=0, description="how far off still reaches them; null: half of their last digit"
    )
    stand_in: str | None = Field(
        None,
        min_length=1,
        description="what this job runs on, where the source's own is not to be had",
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.figures():
            raise ValueError("has no figure: give one or more, as in test_accuracy: 0.823")
        for name in OF_THE_END:
            if self.epoch and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} is of the whole run: leave out epoch, or write it as an entry of"
                    " its own"
                )
        return self

    def figures(self) -> dict[str, Any]:
        """Each figure by its name."""
        return {name: value for name in FIGURES if (value := getattr(self, name)) is not None}

    def is_of(self, point: Point) -> bool:
        """Whether the figures are of the sweep's point."""
        return all(
            axis in point.axes and point.axes[axis] == value for axis, value in self.at.items()
        )


FIGURES = tuple(dict.fromkeys(name for names in OF_TASK.values() for name in names))


def problems(
    published: Sequence[Published], points: list[Point], trains: list[TrainConfig], tree: Tree
) -> list[Problem]:
    """What is wrong with figures that are right by themselves. points, trains: of the job as
    written, without its fallback.
    """
    found: list[tuple[Path_, str]] = []
    for i, one in enumerate(published):
        path = ("published", i)
        of = [train for point, train in zip(points, trains, strict=True) if one.is_of(point)]
        if not of:
            there = (
                f"; points: {'; '.join(map(str, points[:4]))}"
                if points[0].axes
                else ": the job has no sweep"
            )
            asked = " ".join(f"{axis}={text(value)}" for axis, value in one.at.items())
            found.append(((*path, "at"), f"{asked} is no point of the sweep{there}"))
            continue
        task = of[0].data.task
        for name in one.figures():
            if name not in OF_TASK[task]:
                found.append(
                    (
                        (*path, name),
                        f"is not measured of a {task}; figures: {', '.join(OF_TASK[task])}",
                    )
                )
        if one.epoch and one.epoch > of[0].epochs:
            found.append(
                ((*path, "epoch"), f"found {one.epoch}; the job has {of[0].epochs} epochs")
            )
    return [Problem(tree.place(path, of_key=True), path, message) for path, message in found]
