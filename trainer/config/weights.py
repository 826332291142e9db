"""`train.weights`: where a run's first weights come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from trainer.config.strict import Strict

SOURCES = ("torchvision", "file", "run")


class Weights(Strict):
    """Weights that training begins with, from one source; what it does not bring begins as
    `train.init` says.
    """

    torchvision: str | None = Field(
        None,
        pattern=r"^\w+_Weights\.\w+$",
        description=(
            "torchvision's own name, as in ResNet18_Weights.IMAGENET1K_V1; submit fetches it"
        ),
    )
    file: str | None = Field(
        None,
        min_length=1,
        description="a state dict that torch.save or safetensors wrote, below the raw data folder",
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="of that file, 64 hex digits"
    )
    run: str | None = Field(
        None,
        pattern=r"^[a-z0-9][a-z0-9_.-]*$",
        description=(
            "a job beside this one, which is submitted along, or a run_id: its best checkpoint,"
            " else its last"
        ),
    )
    head: Literal["new", "loaded"] = Field(
        "new",
        description=(
            "the last layer, of fcn the last two: new, for other classes, or loaded like the rest"
        ),
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        named = [name for name in SOURCES if getattr(self, name) is not None]
        if len(named) != 1:
            hint = f"; set the other to null, as in {named[0]}: null" if named else ""
            raise ValueError(
                f"takes one of torchvision, file, run; found {' and '.join(named) or 'none'}{hint}"
            )
        if (self.file is None) != (self.sha256 is None):
            raise ValueError("file and sha256 go together: `sha256sum FILE` prints it")
        return self

    def __str__(self) -> str:
        return next(str(value) for name in SOURCES if (value := getattr(self, name)) is not None)
