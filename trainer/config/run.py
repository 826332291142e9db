"""What a run computes: the pydantic models of `train`, `execution` and `tracking`, and `RunConfig`,
which is config.json.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field

from trainer.config.augment import Mix
from trainer.config.data import DataConfig
from trainer.config.files.study import Trial
from trainer.config.models.model import DefaultInit, InitConfig, ModelConfig
from trainer.config.optim import ConstantSchedule, OptimizerConfig, ScheduleConfig
from trainer.config.strict import Strict
from trainer.config.weights import Weights


class EarlyStopping(Strict):
    """Ends the run where the validation split's `best_metric` no longer gets better."""

    patience_evaluations: int = Field(
        ge=1, description="evaluations in a row that may be no better than the best one"
    )
    min_delta: float = Field(0.0, ge=0, description="what counts as better: more than so much")


class TrainConfig(Strict):
    """What decides the weights: this and nothing else is hashed into the run_id."""

    recipe: Literal[1] = Field(
        1, description="raised when the meaning of a default changes, so that ids change too"
    )
    seed: int = Field(0, ge=0, lt=2**31)
    epochs: int = Field(ge=1)
    max_steps: int | None = Field(
        None, ge=1, description="ends the run within an epoch too; null: after all epochs"
    )
    global_batch_size: int = Field(ge=1, description="samples per optimizer step, over all ranks")
    micro_batch_size: int | None = Field(
        None,
        ge=1,
        description=(
            "the most that a rank holds at once; null: global_batch_size / ranks, rounded up"
        ),
    )
    evaluate_every_epochs: int = Field(1, ge=1, description="and always after the last epoch")
    best_metric: Literal["accuracy", "mean_iou", "loss"] = Field(
        "accuracy",
        description=(
            "of the validation split: what the best checkpoint and early stopping go by; mean_iou"
            " of masks"
        ),
    )
    early_stopping: EarlyStopping | None = None
    parity: Literal["bitwise"] | None = Field(
        None,
        description=(
            "bitwise: the same weights and metrics, bit for bit, on any number of ranks; slower"
            " (trainer/README.md)"
        ),
    )
    parity_shards: int = Field(
        8,
        ge=1,
        description=(
            "pieces that parity cuts a step into, whatever the ranks: as many ranks, at most, have"
            " work"
        ),
    )
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    deterministic: bool = Field(
        default=False, description="on a GPU: only algorithms that give the same bits each time"
    )
    channels_last: bool = Field(
        default=False,
        description="the memory format that convolutions like best on GPUs and bf16 CPUs",
    )
    compile: bool = Field(
        default=False,
        description="torch.compile; costs from half a minute to minutes before the first step",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "an exponential moving average of the weights, which is what is evaluated and kept"
        ),
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    loss: Literal["mean_squared_error", "half_squared_error"] | None = Field(
        None,
        description=(
            "of a regression; null: mean_squared_error, and cross-entropy where there are classes"
        ),
    )
    mix: Mix | None = Field(
        None, description="mixup or cutmix of the samples that a rank holds at once"
    )
    clip_grad_norm: float | None = Field(
        None, gt=0, description="gradients are scaled down to this norm over all parameters"
    )
    data: DataConfig
    model: ModelConfig
    init: InitConfig = DefaultInit(name="default")
    weights: Weights | None = Field(
        None, description="what training begins with; null: all weights as init says"
    )
    freeze: list[str] = Field(
        [],
        description=(
            "parameters that are not trained, by name, as in ['*', '!fc.*']: all, but those of the"
            " layer fc"
        ),
    )
    freeze_batch_norm: bool = Field(
        default=False, description="frozen BatchNorm layers keep their running statistics too"
    )
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ConstantSchedule(name="constant")

    def repeatable(self) -> bool:
        """Whether a GPU may use only algorithms that give the same bits each time."""
        return self.deterministic or self.parity is not None

    def shard_size(self) -> int:
        """Samples of a shard of parity, at most: what a rank holds at once."""
        return -(-self.global_batch_size // self.parity_shards)

    def checkpoint_bytes(self) -> int | None:
        """About the size of a checkpoint: weights, what the optimizer keeps for each, and their
        average. None where only torch can count the model's parameters.
        """
        parameters = self.model.parameters(self.data.pictures())
        if parameters is None:
            return None
        return 4 * parameters * self.copies_kept()

    def copies_kept(self) -> int:
        """The weights, what the optimizer keeps for each, and their average."""
        one_each = {
            "sgd": int(getattr(self.optimizer, "momentum", 0) > 0),
            "adagrad": 1,
            "rmsprop": 1,
        }
        return 1 + one_each.get(self.optimizer.name, 2) + (self.ema_decay is not None)

    def digest(self) -> str:
        """64 hex digits: sha256 of the canonical JSON of this config without its defaults, `recipe`
        always in it.
        """
        content = {"recipe": self.recipe, **self.model_dump(mode="json", exclude_defaults=True)}
        return hashlib.sha256(
            json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        ).hexdigest()


class Execution(Strict):
    """How a run is carried out, without effect on its weights; outside the digest."""

    threads_per_rank: int | None = Field(
        None, ge=1, description="CPU threads of torch; null: CPUs / ranks on the node"
    )
    log_every_steps: int = Field(
        50,
        ge=1,
        description="a train row and a log line each so many steps of an epoch, and at its end",
    )
    checkpoint_every_steps: int | None = Field(None, ge=1)
    checkpoint_every_min: float | None = Field(10.0, gt=0, description="minutes")
    device_data_gb: float = Field(
        2.0,
        ge=0,
        description=(
            "a set of pictures up to this size lives on the device; a larger one comes through a"
            " DataLoader"
        ),
    )
    workers: int | None = Field(
        None,
        ge=0,
        description="DataLoader workers a rank; null: its CPUs that the model leaves free",
    )
    hang_limit_s: float | None = Field(
        600.0,
        gt=0,
        description=(
            "without a step (or a batch of an evaluation) for so long, the run ends as hung and"
            " says where"
        ),
    )
    allow_unverified_data: bool = Field(
        default=False, description="train on files that differ from the published checksums"
    )
    max_image_pixels: int | None = Field(
        None,
        ge=1,
        description=(
            "image files of more pixels are refused, for they may be decompression bombs; null:"
            " 89,478,485"
        ),
    )
    stop_after_step: int | None = Field(
        None, ge=1, description="for tests: stop after a checkpoint at this step"
    )


class Tracking(Strict):
    """wandb. auto: online where WANDB_API_KEY or a stored key is found, else offline. metrics.jsonl
    is always written.
    """

    mode: Literal["auto", "offline", "disabled"] = "auto"
    project: str = Field("batchyard", min_length=1)
    entity: str | None = None


class RunExecution(Execution):
    """`execution` with what the first submit fixes for the run's whole life: ranks and threads."""

    ranks: int = Field(
        ge=1, description="ranks that the job asks for; the world size may be smaller"
    )
    threads_per_rank: int = Field(ge=1)
    device: Literal["cpu", "cuda"] = Field(
        description="what the run was promised; it never trains on another kind"
    )
    tracking: Tracking = Tracking()


class RunConfig(Strict):
    """config.json: the whole truth about what a run computes."""

    schema_version: Literal[1] = 1
    job: str
    run_id: str
    sweep: str | None = Field(
        None, description="the id of the sweep that the run is a point of: wandb's group"
    )
    trial: Trial | None = Field(
        None, description="of the sweep's search: it may be stopped for better ones"
    )
    train: TrainConfig
    execution: RunExecution

    def micro_batch_size(self) -> int:
        """Samples that a rank holds at once."""
        train = self.train
        if train.parity:
            return train.shard_size()
        return train.micro_batch_size or -(-train.global_batch_size // self.execution.ranks)


def canonical(train: TrainConfig) -> dict[str, Any]:
    """`train` without its defaults, as it is hashed."""
    return train.model_dump(mode="json", exclude_defaults=True)
