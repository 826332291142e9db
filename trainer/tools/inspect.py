"""`python -m trainer.tools.inspect config.json`: what a run's model and data are, before anything
is trained; one JSON object on stdout.

The model lives on the meta device, so that neither weights nor memory are needed: one batch's
shapes go through it.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from trainer import freeze, models
from trainer.config import micro_batches, steps
from trainer.config.data import ImageFolderData, Pictures, SmallPictures
from trainer.config.files.outcome import EXIT_WRONG
from trainer.config.models.layers import MANY_CLASSES
from trainer.config.run import RunConfig
from trainer.datasets.find import dataset
from trainer.prepared.errors import DataError
from trainer.prepared.pictures import MOST_PIXELS
from trainer.prepared.raw import Allowed, Source


class DoesNotFit(Exception):
    """The model takes no pictures of this size, or gives no class's score; the message is for a
    person.
    """


def inspect(config: RunConfig, data_dir: Path) -> dict[str, Any]:
    """What is known of the model, and of the data where they are in `data_dir`.

    Raises DoesNotFit.
    """
    data = look_for_data(config, data_dir)
    given = config.train.data.pictures()
    classes = len(data["classes"]) if "classes" in data else given.classes
    of_all = given._replace(classes=classes or MANY_CLASSES)
    if (listed := data.get("train_samples")) is not None:
        look_at_smallest_batch(config, of_all, listed)
    model = look_at_model(config, of_all, classes_known=classes is not None)
    return {"data": data, "model": model}


def look_at_smallest_batch(config: RunConfig, given: Pictures, prepared: int) -> None:
    """Trains on the smallest micro-batch of the run where that is one sample, by shapes alone.
    prepared: train samples of the data.

    Raises DoesNotFit where BatchNorm takes no single value, and where frozen names do not fit the
    model.
    """
    train = config.train
    samples = steps.trained_on(prepared, train.data.wanted()[0], train.data.validation)
    parts, ranks = dict(train), config.execution.ranks
    if not micro_batches.is_one_sample(parts, samples, train.global_batch_size, ranks):
        return
    assert given.classes is not None
    try:
        model = models.build_on_meta(train.model, given.classes, given.channels, given[1:3])
        freeze.apply(model, train.freeze, batch_norm=train.freeze_batch_norm)
        saved_bytes(model, (1, *given[:3]))
    except DataError as error:
        raise DoesNotFit(str(error)) from error
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        # what else a model does not take, look_at_model says
        if "more than 1 value per channel" in str(error):
            raise DoesNotFit(
                f"train.global_batch_size: {micro_batches.sentence(parts, samples, ranks)}"
            ) from error


def look_for_data(config: RunConfig, data_dir: Path) -> dict[str, Any]:
    """{"name", "classes": their names, "train_samples": how many there are, None where only prepare
    knows, "notes": what else a user should know of them} or {"name", "problem": what is wrong, and
    where to put it}.

    Finds the files, or fetches them, and holds them against their checksums; converts nothing.
    """
    data = config.train.data
    name = " ".join([data.name, *([data.folder] if isinstance(data, ImageFolderData) else [])])
    try:
        source = dataset(data.name).source(
            data, data_dir, Allowed(config.execution.allow_unverified_data, MOST_PIXELS)
        )
    except (DataError, OSError) as error:
        return {"name": name, "problem": str(error)}
    classes, wanted = source.classes, data.pictures().classes
    if wanted is not None and wanted != len(classes):
        return {
            "name": name,
            "problem": f"{data.name} has {len(classes)} classes, the job takes it for {wanted}",
        }
    return {
        "name": name,
        "classes": classes,
        "train_samples": train_samples(config, source),
        "notes": list(source.notes),
    }


def train_samples(config: RunConfig, source: Source) -> int | None:
    """How many samples prepare will make of the train split: by the settings, else by the files
    that are listed.
    """
    data = config.train.data
    if isinstance(data, SmallPictures):
        return data.available()[0]
    if isinstance(data, ImageFolderData) and not data.skip_bad and source.files is not None:
        return len(source.files.names["train"])
    return None


def look_at_model(
    config: RunConfig, given: Pictures, *, classes_known: bool = True
) -> dict[str, Any]:
    """Layers with the shapes that they give, their parameters and FLOPs; totals; the memory of a
    rank. Raises DoesNotFit.

    The model has to give [classes] of a picture, of a segmentation [classes, H, W], a pixel's
    scores each. Shapes are without the batch's dimension. FLOPs are of one picture's forward pass:
    two for each multiplication with its addition in convolutions, linear layers and attention; the
    rest is not counted. Memory, in bytes: weights, gradients, what the optimizer keeps, the
    average, and what the forward pass of a micro-batch keeps for the backward pass (in bf16 and
    fp16 about half of that); neither the pictures nor the libraries' own.
    """
    assert given.classes is not None
    train, picture = config.train, (given.channels, given.height, given.width)
    try:
        model = models.build_on_meta(train.model, given.classes, picture[0], picture[1:])
        layers = walk(model, picture)
        activations = saved_bytes(model, (config.micro_batch_size(), *picture))
    # whatever a library says of a shape
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        size = f"{given.channels}x{given.height}x{given.width}"
        raise DoesNotFit(
            f"train.model: {train.model.name} takes no pictures of {size} ({train.data.name}):"
            f" {error}"
        ) from error
    expected = [given.classes, *(picture[1:] if train.data.task == "segmentation" else ())]
    if layers[0]["shape"] != expected:
        raise DoesNotFit(
            f"train.model: {train.model.name} gives {layers[0]['shape']} a picture; expected"
            f" {expected}"
        )
    parameters = sum(p.numel() for p in model.parameters())
    return {
        "name": train.model.name,
        "input": list(picture),
        "classes": given.classes,
        "classes_known": classes_known,
        "layers": layers,
        "parameters": parameters,
        "flops": layers[0]["flops"],
        "micro_batch_size": config.micro_batch_size(),
        "memory_bytes": (
            4 * parameters * (train.copies_kept() + 1)
            + activations // (1 if train.precision == "fp32" else 2)
        ),
    }


def walk(model: nn.Module, picture: tuple[int, ...]) -> list[dict[str, Any]]:
    """Every module in the order of the forward pass, the whole model first: name, type, depth,
    shape, parameters, flops, whether it is a leaf, which calls no other. A module that is called
    twice counts once, its FLOPs twice.
    """
    called: dict[str, Any] = {}
    hooks: list[RemovableHandle] = []

    def watch(name: str, module: nn.Module) -> None:
        def enter(module: nn.Module, inputs: Any) -> None:
            called.setdefault(name, None)

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            called[name] = list(output.shape[1:]) if isinstance(output, Tensor) else None

        hooks.extend((module.register_forward_pre_hook(enter), module.register_forward_hook(leave)))

    modules = dict(model.named_modules())
    for name, module in modules.items():
        watch(name, module)
    model.eval()  # BatchNorm takes no single value a channel in training
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros((1, *picture), device="meta"))
    finally:
        for hook in hooks:
            hook.remove()
    counts, root = counter.get_flop_counts(), type(model).__name__
    rows = []
    for name, shape in called.items():
        module = modules[name]
        flops = sum(counts.get(f"{root}.{name}" if name else "Global", {}).values())
        rows.append(
            {
                "name": name,
                "type": type(module).__name__,
                "depth": name.count(".") + 1 if name else 0,
                "shape": shape,
                "parameters": sum(p.numel() for p in module.parameters()),
                "flops": flops,
                "leaf": not any(
                    other.startswith(f"{name}." if name else "")
                    for other in called
                    if other != name
                ),
            }
        )
    return rows


def saved_bytes(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Bytes, in float32, that the forward pass of a batch keeps for the backward pass, weights and
    their like not counted.
    """
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}  # storages, held so that none's address is used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.zeros(shape, device="meta"))
    return sum(storage.nbytes() for storage in kept.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument(
        "--prepared",
        type=int,
        help="train samples as prepared: look at the smallest micro-batch alone",
    )
    parser.add_argument("--classes", type=int, help="of the prepared data")
    arguments = parser.parse_args()
    config = RunConfig.model_validate_json(arguments.config.read_text())
    try:
        if arguments.prepared is not None:
            given = config.train.data.pictures()._replace(classes=arguments.classes)
            look_at_smallest_batch(config, given, arguments.prepared)
            print(json.dumps({}))
        else:
            print(json.dumps(inspect(config, arguments.data_dir)))
    except DoesNotFit as error:
        print(error, file=sys.stderr)
        sys.exit(EXIT_WRONG)


if __name__ == "__main__":
    main()
