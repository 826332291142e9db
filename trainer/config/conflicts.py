"""Settings that do not go together, found before anything runs.

Works on the parts that are right by themselves, so that a person reads every mistake at once.
Imports trainer.config alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trainer.config import micro_batches
from trainer.config.augment import ColourJitter, HorizontalFlip, RandomCrop, ResizedCrop
from trainer.config.data import ImageData, ImageFolderData, SmallPictures, VOCData
from trainer.config.models.layers import Model
from trainer.config.models.model import FCNModel, MLPModel
from trainer.config.optim import MultiStepSchedule, OneCycleSchedule, Optimizer, StepSchedule
from trainer.config.run import TrainConfig
from trainer.config.tables import TableData

# (the key's path below `train`, what is wrong and what to try)
Conflict = tuple[tuple[str, ...], str]


def conflicts(train: Mapping[str, Any]) -> list[Conflict]:
    """train: the fields of a TrainConfig by name; a field that is missing, or was wrong by itself,
    is left out.
    """
    parts = (_batches, _parity, _data, _model, _weights, _optimizer, _schedule, _validation, _task)
    return [conflict for part in parts for conflict in part(train)]


def _batches(train: Mapping[str, Any]) -> Iterator[Conflict]:
    micro, whole = train.get("micro_batch_size"), train.get("global_batch_size")
    if train.get("mix") is not None and 1 in (micro, whole):
        yield ("mix",), "needs two samples at once: make micro_batch_size larger"
    if micro and whole and micro > whole:
        yield (
            ("micro_batch_size",),
            f"{micro} is more than global_batch_size {whole}: a rank would never hold so many",
        )
    if problem := micro_batches.of_job(train):
        yield ("global_batch_size",), problem


def _parity(train: Mapping[str, Any]) -> Iterator[Conflict]:
    shards, whole = train.get("parity_shards"), train.get("global_batch_size")
    if train.get("parity", "wrong by itself") is None:
        if shards not in (None, TrainConfig.model_fields["parity_shards"].default):
            yield ("parity_shards",), "has no effect without parity: bitwise"
    elif "parity" in train:
        if train.get("micro_batch_size") is not None:
            yield (
                ("micro_batch_size",),
                "parity_shards decides how many samples a rank holds at once: leave it out",
            )
        if train.get("compile"):
            yield (
                ("compile",),
                (
                    "compiles for the shapes that a rank has met, which depend on the ranks: leave"
                    " out either"
                ),
            )
        if shards and whole and shards > whole:
            yield (
                ("parity_shards",),
                (
                    f"{shards} is more than global_batch_size {whole}: some shards would be empty;"
                    f" try {whole}"
                ),
            )


def _data(train: Mapping[str, Any]) -> Iterator[Conflict]:
    data = train.get("data")
    if not isinstance(data, ImageData):
        return
    pictures = data.pictures()
    for name, given in (("mean", data.mean), ("std", data.std)):
        if given is not None and len(given) != pictures.channels:
            yield (
                ("data", name),
                (
                    f"has {len(given)} number(s); the pictures of {_name(data)} have"
                    f" {pictures.channels} channel(s)"
                ),
            )
    if isinstance(data, SmallPictures):
        for name, wanted, there in zip(
            ("train_samples", "test_samples"), data.wanted(), data.available(), strict=True
        ):
            if wanted is not None and wanted > there:
                yield ("data", name), f"{wanted} is more than the {there} that {_name(data)} has"
    yield from _augmentations(data, pictures.channels)
    if isinstance(data, ImageFolderData):
        yield from _image_folder(data)


def _augmentations(data: ImageData, channels: int) -> Iterator[Conflict]:
    crops = [a for a in data.augment if isinstance(a, RandomCrop | ResizedCrop)]
    if crops and data.random_crop_padding:
        yield (
            (
                "data",
                "random_crop_padding",
            ),
            f"{crops[0].name} is a random crop already: leave out either",
        )
    if crops and getattr(data, "random_resized_crop", None) is not None:
        yield (
            (
                "data",
                "augment",
            ),
            f"random_resized_crop cuts a piece out before {crops[0].name} does: leave out either",
        )
    if data.random_horizontal_flip and any(isinstance(a, HorizontalFlip) for a in data.augment):
        yield (
            (
                "data",
                "random_horizontal_flip",
            ),
            "augment has a horizontal_flip already: leave out either",
        )
    if channels == 1 and any(
        isinstance(a, ColourJitter) and (a.saturation or a.hue) for a in data.augment
    ):
        yield (
            ("data", "augment"),
            (
                f"the pictures of {_name(data)} are grey: saturation and hue of colour_jitter"
                " change nothing"
            ),
        )


def _fractions(data: ImageFolderData, fractions: Sequence[float]) -> Iterator[Conflict]:
    """Of one folder that is split."""
    if abs(sum(fractions) - 1) > 1e-9:  # as far as torch's random_split takes it for 1
        yield ("data", "fractions"), f"add up to {sum(fractions):.10g}; expected 1"
    for name in ("train_folder", "test_folder", "validation_folder"):
        if name in data.model_fields_set:
            yield ("data", name), "fractions split one folder: leave out either"


def _folders(data: ImageFolderData) -> Iterator[Conflict]:
    """Of a folder for each split."""
    if "split_seed" in data.model_fields_set:
        yield ("data", "split_seed"), "is the seed of a split by `fractions`; there are none"
    for name, folder in (
        ("train_folder", data.train_folder),
        ("validation_folder", data.validation_folder),
    ):
        if folder == data.test_folder:
            yield (
                ("data", "test_folder"),
                f"'{folder}' is the {name} too: the test would be of pictures that were seen",
            )
    if data.train_folder == data.validation_folder:
        yield (
            ("data", "validation_folder"),
            f"'{data.train_folder}' is the train_folder too; validation: 0.1 holds a part out",
        )


def _validation_sources(data: ImageFolderData) -> Iterator[Conflict]:
    """More than one setting that names the validation split."""
    is_named = {
        "validation": data.validation is not None,
        "validation_folder": data.validation_folder is not None,
        "fractions": len(data.fractions or []) == 3,
    }
    sources = [name for name, is_one in is_named.items() if is_one]
    if len(sources) > 1:
        yield (
            ("data", sources[0]),
            f"and {' and '.join(sources[1:])} each name validation pictures: leave one",
        )


def _image_folder(data: ImageFolderData) -> Iterator[Conflict]:
    if data.fractions is not None:
        yield from _fractions(data, data.fractions)
    else:
        yield from _folders(data)
    yield from _validation_sources(data)
    if data.resize is not None and data.resize < data.size:
        yield (
            (
                "data",
                "resize",
            ),
            f"{data.resize} is less than size {data.size}, which is cut out of it",
        )
    if data.random_resized_crop is not None and data.random_crop_padding:
        yield (
            (
                "data",
                "random_crop_padding",
            ),
            "random_resized_crop is a random crop already: leave out either",
        )


def _model(train: Mapping[str, Any]) -> Iterator[Conflict]:
    model, data = train.get("model"), train.get("data")
    if isinstance(model, MLPModel) and not model.hidden and model.dropout:
        yield ("model", "dropout"), "comes after each hidden layer, and hidden: [] has none"
    if isinstance(model, MLPModel) and model.dropouts is not None:
        if len(model.dropouts) != len(model.hidden):
            yield (
                (
                    "model",
                    "dropouts",
                ),
                f"has {len(model.dropouts)} number(s) for {len(model.hidden)} hidden layer(s)",
            )
        if model.dropout:
            yield (
                (
                    "model",
                    "dropout",
                ),
                "dropouts name a number for each hidden layer: leave out either",
            )
    if isinstance(model, Model) and isinstance(data, ImageData):
        pictures, least = data.pictures(), model.smallest()
        if min(pictures.height, pictures.width) < least:
            larger = f"resize: {least}" if isinstance(data, SmallPictures) else f"size: {least}"
            yield (
                ("model", "name"),
                (
                    f"{_name(model)} takes pictures of at least {least}x{least} pixels,"
                    f" {_name(data)} has {pictures.height}x{pictures.width}; try"
                    f" train.data.{larger}, or another model"
                ),
            )


def _weights(train: Mapping[str, Any]) -> Iterator[Conflict]:
    weights, init = train.get("weights"), train.get("init")
    if train.get("freeze") == [] and train.get("freeze_batch_norm"):
        yield ("freeze_batch_norm",), "has no effect without freeze, as in freeze: ['*', '!fc.*']"
    if (
        weights is not None
        and weights.head == "loaded"
        and init is not None
        and init.name != "default"
    ):
        yield ("init",), "has no effect where weights bring the last layer too: leave out either"


def _optimizer(train: Mapping[str, Any]) -> Iterator[Conflict]:
    optimizer = train.get("optimizer")
    if (
        isinstance(optimizer, Optimizer)
        and not optimizer.decay_bias_and_norm
        and not getattr(optimizer, "weight_decay", 0)
    ):
        yield (
            (
                "optimizer",
                "decay_bias_and_norm",
            ),
            "false has no effect without a weight_decay above 0",
        )


def _schedule(train: Mapping[str, Any]) -> Iterator[Conflict]:
    schedule, epochs = train.get("schedule"), train.get("epochs")
    if schedule is None or epochs is None:
        return
    if not isinstance(schedule, OneCycleSchedule) and schedule.warmup_epochs > epochs:
        yield (
            (
                "schedule",
                "warmup_epochs",
            ),
            f"{schedule.warmup_epochs:g} is more than epochs {epochs}: lr would never be reached",
        )
    if isinstance(schedule, MultiStepSchedule) and schedule.milestones_epochs[-1] > epochs:
        yield (
            (
                "schedule",
                "milestones_epochs",
            ),
            f"{schedule.milestones_epochs[-1]} is more than epochs {epochs}: never reached",
        )
    if isinstance(schedule, StepSchedule) and schedule.every_epochs > epochs:
        yield (
            (
                "schedule",
                "every_epochs",
            ),
            f"{schedule.every_epochs} is more than epochs {epochs}: the rate would never step",
        )


def _validation(train: Mapping[str, Any]) -> Iterator[Conflict]:
    data = train.get("data")
    if not isinstance(data, ImageData | TableData) or data.has_validation():
        return
    hint = (
        "needs a validation split, as in train.data.validation: 0.1; nothing is ever chosen on the"
        " test set"
    )
    if train.get("early_stopping") is not None:
        yield ("early_stopping",), hint
    if train.get("best_metric") == "loss":
        yield ("best_metric",), hint


def _task(train: Mapping[str, Any]) -> Iterator[Conflict]:
    data, model = train.get("data"), train.get("model")
    if isinstance(data, ImageData):
        yield from _masks(train, data, model)
    if train.get("mix") is not None and data is not None and data.task != "classification":
        yield ("mix",), f"is of classes; {_name(data)} has none: leave it out"
    if isinstance(data, ImageData) and train.get("loss") is not None:
        yield (
            ("loss",),
            (
                f"is of a regression; {_name(data)} has classes, whose loss is the cross-entropy:"
                " leave it out"
            ),
        )
    if not isinstance(data, TableData):
        return
    if model is not None and not isinstance(model, MLPModel):
        yield ("model", "name"), f"{model.name} takes pictures, {_name(data)} is a table; try mlp"
    if train.get("label_smoothing"):
        yield ("label_smoothing",), f"is of classes; {_name(data)} has numbers to predict"
    if data.has_validation() and train.get("best_metric") not in (None, "loss"):
        yield (
            ("best_metric",),
            f"{_name(data)} has no {train['best_metric']} to choose by; try best_metric: loss",
        )


def _masks(train: Mapping[str, Any], data: ImageData, model: Any) -> Iterator[Conflict]:
    """A model that gives a class to each pixel, and data that have one."""
    if not isinstance(data, VOCData):
        if isinstance(model, FCNModel):
            yield (
                (
                    "model",
                    "name",
                ),
                f"fcn gives a class to each pixel, {_name(data)} has one a picture; try resnet",
            )
        if train.get("best_metric") == "mean_iou":
            yield ("best_metric",), f"mean_iou is of masks; {_name(data)} has accuracy or loss"
        return
    if model is not None and not isinstance(model, FCNModel):
        yield (
            (
                "model",
                "name",
            ),
            f"{model.name} gives one class to a picture, {_name(data)} has masks; try fcn",
        )
    if any(side % 32 for side in data.crop):
        yield (
            (
                "data",
                "crop",
            ),
            f"{data.crop}: fcn halves a picture five times and doubles it again: multiples of 32",
        )
    for name in ("random_crop_padding", "random_horizontal_flip", "augment"):
        if getattr(data, name):
            yield (
                ("data", name),
                (
                    "would move the picture and not its mask: leave it out; train pieces are random"
                    " crops already"
                ),
            )


def _name(part: ImageData | TableData | Model) -> str:
    return str(getattr(part, "name", "this one"))
