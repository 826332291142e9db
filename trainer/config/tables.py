"""`train.data` of tables: rows of numbers, for regression. Imports trainer.config alone."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from trainer.config.pictures import Pictures
from trainer.config.strict import Strict


class TableData(Strict):
    """What every table can do.

    A row is given to the model as a picture of one pixel, its features as the channels.
    """

    task: ClassVar[Literal["regression"]] = "regression"

    validation: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None,
        description=(
            "part of the train rows that is held out to choose by; the same ones for every seed"
        ),
    )

    def pictures(self) -> Pictures:
        """What the rows are, as far as the settings alone tell."""
        raise NotImplementedError

    def wanted(self) -> tuple[int | None, int | None]:
        """How many of the train and of the test rows are used: all."""
        return None, None

    def has_validation(self) -> bool:
        """Whether there is a split to choose by."""
        return self.validation is not None

    def prepared_by(self) -> dict[str, Any]:
        """The settings that decide what prepare makes of the same files."""
        return self.model_dump(mode="json", exclude={"validation"})


class LinearData(TableData):
    """Made rows: y = w . x + b + noise, x from N(0, 1), noise from N(0, noise); the same ones for
    every seed of the run.
    """

    name: Literal["linear"]
    features: int = Field(ge=1)
    w: float | list[float] = Field(
        description="one number a feature, or one number for all of them"
    )
    b: float = 0.0
    noise: float = Field(
        0.01, ge=0, description="standard deviation of what is added to each target"
    )
    train_samples: int = Field(ge=2)
    test_samples: int = Field(ge=1)
    data_seed: int = Field(0, ge=0, description="another one draws other rows")

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if isinstance(self.w, list) and len(self.w) != self.features:
            raise ValueError(
                f"w has {len(self.w)} number(s), features is {self.features}: one a feature, or one"
                " number for all"
            )
        return self

    def pictures(self) -> Pictures:
        return Pictures(self.features, 1, 1, 1)


class AirfoilData(TableData):
    """NASA's airfoil self-noise table (Brooks, Pope, Marcolini 1989; UCI): 1,503 rows of 5 features
    and a sound level.

    All columns standardised over all rows. The first 1,500 rows are the train rows, as in Dive into
    Deep Learning; the test is of the three that are left, too few to tell anything.
    """

    name: Literal["airfoil"]

    def pictures(self) -> Pictures:
        return Pictures(5, 1, 1, 1)
