"""What a run computes: the pydantic models of `train`, `execution` and `tracking`, and `RunConfig`, which is config.json."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Strict(BaseModel):
    """Unknown keys and values of another type are errors; a model never changes once it is made."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ImageData(Strict):
    """What every set of small pictures of one size can do, on the device, to whole pieces of an epoch."""

    random_crop_padding: int = Field(0, ge=0, le=16, description="zero pixels added to each side before a random crop")
    random_horizontal_flip: bool = False
    mean: list[float] | None = Field(None, description="of each channel, of pixels over 0..1; null: the train pictures' own")
    std: list[Annotated[float, Field(gt=0)]] | None = Field(None, description="likewise")

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.mean is None) != (self.std is None) or len(self.mean or []) != len(self.std or []):
            raise ValueError("mean and std go together, one number a channel each, as in mean: [0.5], std: [0.5]")
        return self


class DigitsData(ImageData):
    """scikit-learn's digits: 1,797 grey pictures of 8x8, 10 classes; a seeded permutation, 1,437 train / 360 test."""

    name: Literal["digits"]


class CIFAR10Data(ImageData):
    """CIFAR-10: 50,000 + 10,000 colour pictures of 32x32, 10 classes (Krizhevsky 2009)."""

    name: Literal["cifar10"]


class FashionMNISTData(ImageData):
    """Fashion-MNIST: 60,000 + 10,000 grey pictures of 28x28, 10 classes (Xiao et al., arXiv:1708.07747)."""

    name: Literal["fashion_mnist"]


class SyntheticData(ImageData):
    """Made pictures that a model can learn: a fixed pattern a class plus noise. For tests and speed, never for results."""

    name: Literal["synthetic"]
    samples: int = Field(1024, ge=2, description="train pictures; a quarter as many for the test")
    classes: int = Field(10, ge=2, le=1000)
    channels: int = Field(3, ge=1)
    size: int = Field(32, ge=1, description="height and width in pixels")


class ResNetModel(Strict):
    """A ResNet of basic blocks with a 3x3 stem (trainer/models/resnet.py)."""

    name: Literal["resnet"]
    width: int = Field(64, ge=1, description="channels of the first stage; each further stage doubles them")
    blocks: list[Annotated[int, Field(ge=1)]] = Field([2, 2, 2, 2], min_length=1, description="basic blocks per stage")
    dropout: float = Field(0.0, ge=0, lt=1, description="before the last layer")


class MLPModel(Strict):
    """Linear layers with ReLU between them (trainer/models/mlp.py)."""

    name: Literal["mlp"]
    hidden: list[Annotated[int, Field(ge=1)]] = Field(description="width of each hidden layer; [] is softmax regression")
    dropout: float = Field(0.0, ge=0, lt=1, description="after each hidden layer")


class LeNetModel(Strict):
    """Two 5x5 convolutions with pooling and three linear layers (trainer/models/lenet.py)."""

    name: Literal["lenet"]
    channels: list[Annotated[int, Field(ge=1)]] = Field([6, 16], min_length=2, max_length=2, description="of the convolutions")
    activation: Literal["relu", "sigmoid"] = "relu"


class DefaultInit(Strict):
    """torch's own initialisation of each layer."""

    name: Literal["default"]


class NormalInit(Strict):
    """Weights of linear layers and convolutions from N(0, std); their biases zero."""

    name: Literal["normal"]
    std: float = Field(gt=0)


class XavierInit(Strict):
    """Weights uniform by Glorot & Bengio (2010); biases zero."""

    name: Literal["xavier_uniform"]


class KaimingInit(Strict):
    """Weights normal by He et al. (arXiv:1502.01852), fan-out, for ReLU; biases zero."""

    name: Literal["kaiming_normal"]


class Optimizer(Strict):
    """What every optimizer takes."""

    lr: float = Field(gt=0)
    decay_bias_and_norm: bool = Field(True, description="false: weight decay leaves biases and normalisation layers alone")


class SGDOptimizer(Optimizer):
    """torch.optim.SGD."""

    name: Literal["sgd"]
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true takes a momentum above 0, as in momentum: 0.9")
        return self


class AdamOptimizer(Optimizer):
    """torch.optim.Adam: weight decay is added to the gradient."""

    name: Literal["adam"]
    betas: list[Annotated[float, Field(ge=0, lt=1)]] = Field([0.9, 0.999], min_length=2, max_length=2)
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(0.0, ge=0)


class AdamWOptimizer(AdamOptimizer):
    """torch.optim.AdamW: weight decay apart from the gradient (arXiv:1711.05101)."""

    name: Literal["adamw"]  # type: ignore[assignment]
    weight_decay: float = Field(0.01, ge=0)


class ConstantSchedule(Strict):
    """The learning rate as given."""

    name: Literal["constant"]


class CosineSchedule(Strict):
    """Linear warm-up, then half a cosine to zero at the last step (Loshchilov & Hutter, arXiv:1608.03983)."""

    name: Literal["cosine"]
    warmup_epochs: float = Field(0.0, ge=0)


class StepSchedule(Strict):
    """The rate times gamma after every so many epochs (torch.optim.lr_scheduler.StepLR)."""

    name: Literal["step"]
    every_epochs: int = Field(ge=1)
    gamma: float = Field(0.1, gt=0, lt=1)


class OneCycleSchedule(Strict):
    """Linear from 0 to lr over the first part, linear back to 0 at the last step (Smith, arXiv:1708.07120)."""

    name: Literal["one_cycle"]
    warmup_fraction: float = Field(0.3, gt=0, lt=1, description="of all steps")


DataConfig = Annotated[DigitsData | CIFAR10Data | FashionMNISTData | SyntheticData, Field(discriminator="name")]
ModelConfig = Annotated[ResNetModel | MLPModel | LeNetModel, Field(discriminator="name")]
InitConfig = Annotated[DefaultInit | NormalInit | XavierInit | KaimingInit, Field(discriminator="name")]
OptimizerConfig = Annotated[SGDOptimizer | AdamOptimizer | AdamWOptimizer, Field(discriminator="name")]
ScheduleConfig = Annotated[ConstantSchedule | CosineSchedule | StepSchedule | OneCycleSchedule, Field(discriminator="name")]


class TrainConfig(Strict):
    """What decides the weights: this and nothing else is hashed into the run_id."""

    recipe: Literal[1] = Field(1, description="raised when the meaning of a default changes, so that ids change too")
    seed: int = Field(0, ge=0, lt=2**31)
    epochs: int = Field(ge=1)
    global_batch_size: int = Field(ge=1, description="samples per optimizer step, over all ranks")
    micro_batch_size: int | None = Field(
        None, ge=1, description="the most that a rank holds at once; null: global_batch_size / ranks, rounded up"
    )
    evaluate_every_epochs: int = Field(1, ge=1, description="and always after the last epoch")
    precision: Literal["fp32", "bf16"] = "fp32"
    deterministic: bool = Field(False, description="on a GPU: only algorithms that give the same bits each time")
    channels_last: bool = Field(False, description="the memory format that convolutions like best on GPUs and bf16 CPUs")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    clip_grad_norm: float | None = Field(None, gt=0, description="gradients are scaled down to this norm over all parameters")
    data: DataConfig
    model: ModelConfig
    init: InitConfig = DefaultInit(name="default")
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ConstantSchedule(name="constant")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.micro_batch_size and self.micro_batch_size > self.global_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} is more than global_batch_size {self.global_batch_size}")
        return self

    def digest(self) -> str:
        """64 hex digits: sha256 of the canonical JSON of this config without its defaults, `recipe` always in it."""
        content = {"recipe": self.recipe, **self.model_dump(mode="json", exclude_defaults=True)}
        return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Execution(Strict):
    """How a run is carried out, without effect on its weights; outside the digest."""

    threads_per_rank: int | None = Field(None, ge=1, description="CPU threads of torch; null: CPUs / ranks on the node")
    log_every_steps: int = Field(50, ge=1, description="a train row and a log line each so many steps")
    checkpoint_every_steps: int | None = Field(None, ge=1)
    checkpoint_every_min: float | None = Field(10.0, gt=0, description="minutes")
    allow_unverified_data: bool = Field(False, description="train on files that differ from the published checksums")
    stop_after_step: int | None = Field(None, ge=1, description="for tests: stop after a checkpoint at this step")


class Tracking(Strict):
    """wandb. auto: online where WANDB_API_KEY or a stored key is found, else offline. metrics.jsonl is always written."""

    mode: Literal["auto", "offline", "disabled"] = "auto"
    project: str = Field("batchyard", min_length=1)
    entity: str | None = None


class RunExecution(Execution):
    """`execution` with what the first submit fixes for the run's whole life: ranks and threads."""

    ranks: int = Field(ge=1, description="ranks that the job asks for; the world size may be smaller")
    threads_per_rank: int = Field(ge=1)
    device: Literal["cpu", "cuda"] = Field(description="what the run was promised; it never trains on another kind")
    tracking: Tracking = Tracking()


class RunConfig(Strict):
    """config.json: the whole truth about what a run computes."""

    schema_version: Literal[1] = 1
    job: str
    run_id: str
    train: TrainConfig
    execution: RunExecution

    def micro_batch_size(self) -> int:
        """Samples that a rank holds at once."""
        train = self.train
        return train.micro_batch_size or -(-train.global_batch_size // self.execution.ranks)


def canonical(train: TrainConfig) -> dict[str, Any]:
    """`train` without its defaults, as it is hashed."""
    return train.model_dump(mode="json", exclude_defaults=True)
