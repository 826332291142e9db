"""The models: their size known without torch, the least picture that each takes, libraries' by
name; pictures resized and cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from tests import ranks
from trainer import models
from trainer.batches.batches import Batches, Sampling
from trainer.config.data import Pictures
from trainer.config.models.library import TORCHVISION
from trainer.config.run import RunConfig
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load

OWN = [
    {"name": "alexnet"},
    {"name": "cnn", "channels": [6, 16], "hidden": [120, 84]},
    {"name": "densenet"},
    {"name": "googlenet"},
    {"name": "lenet", "batch_norm": True},
    {"name": "nin"},
    {"name": "resnet", "stem": "7x7", "width": 8},
    {"name": "vgg11", "width": 2},
    {"name": "mlp", "hidden": [9, 8], "dropouts": [0.2, 0.0]},
    {"name": "cnn", "channels": [3, 4, 5], "kernel_size": 5, "hidden": []},
    {"name": "densenet", "growth": 3, "convolutions": [2, 1]},
]


def config(model: dict[str, Any]) -> Any:
    return ranks.config(model=model).train.model


@pytest.mark.parametrize("model", OWN, ids=str)
@pytest.mark.parametrize("picture", [(1, 96, 96), (3, 67, 80)])
def test_the_size_of_a_model_is_known_without_torch(
    model: dict[str, Any], picture: tuple[int, int, int]
) -> None:
    channels, height, width = picture
    built = models.build_on_meta(config(model), 7, channels, (height, width))
    assert built(torch.zeros(2, *picture, device="meta")).shape == (2, 7)
    assert sum(p.numel() for p in built.parameters()) == config(model).parameters(
        Pictures(*picture, 7)
    )


@pytest.mark.parametrize("model", OWN, ids=str)
def test_the_least_picture_is_the_least(model: dict[str, Any]) -> None:
    least = config(model).smallest()
    built = models.build_on_meta(config(model), 7, 1, (least, least)).eval()
    assert built(torch.zeros(2, 1, least, least, device="meta")).shape == (2, 7)
    if least > 1:
        with pytest.raises(RuntimeError):
            built(torch.zeros(2, 1, least - 1, least - 1, device="meta"))
        with pytest.raises(
            ValueError,
            match=f"{model['name']} takes pictures of at least {least}x{least} pixels, these have",
        ):
            models.build(config(model), 7, 1, (least - 1, least))


def test_batch_normalisation_stands_before_each_sigmoid() -> None:
    layers = list(
        models.build(
            config({"name": "lenet", "activation": "sigmoid", "batch_norm": True}), 10, 1, (28, 28)
        )
    )
    places = [i for i, layer in enumerate(layers) if isinstance(layer, torch.nn.Sigmoid)]
    assert len(places) == 4
    assert all(
        isinstance(layers[i - 1], torch.nn.BatchNorm1d | torch.nn.BatchNorm2d) for i in places
    )


def test_each_hidden_layer_has_its_dropout() -> None:
    layers = models.build(
        config({"name": "mlp", "hidden": [9, 8], "dropouts": [0.2, 0.5]}), 10, 1, (28, 28)
    )
    assert [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout)] == [0.2, 0.5]
    assert [type(layer).__name__ for layer in layers][3:6] == ["Dropout", "Linear", "ReLU"]


def test_torchvisions_classification_models_are_all_known() -> None:
    assert sorted(TORCHVISION) == torchvision.models.list_models(module=torchvision.models)


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_model_of_torchvision_for_other_classes_and_channels(name: str) -> None:
    built = models.build_on_meta(config({"name": f"torchvision/{name}"}), 7, 1, (224, 224))
    assert {p.device.type for p in built.parameters()} == {"meta"}
    assert built(torch.zeros(2, 1, 224, 224, device="meta")).shape == (2, 7)


def test_a_model_of_torchvision_is_torchvisions() -> None:
    torch.manual_seed(0)
    built = models.build(config({"name": "torchvision/resnet18"}), 1000, 3, (224, 224))
    assert sum(p.numel() for p in built.parameters()) == 11_689_512
    torch.manual_seed(0)
    assert torch.equal(built.conv1.weight, torchvision.models.resnet18().conv1.weight)
    with pytest.raises(ValueError, match="takes square pictures, these have 224x192"):
        models.build(config({"name": "torchvision/vit_b_16"}), 7, 3, (224, 192))


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_a_model_of_timm_for_other_classes_channels_and_sizes(name: str) -> None:
    pytest.importorskip("timm")
    built = models.build_on_meta(config({"name": f"timm/{name}"}), 7, 1, (96, 96))
    assert built(torch.zeros(2, 1, 96, 96, device="meta")).shape == (2, 7)


def test_timm_says_which_names_are_near() -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=r"has no model 'resnet81'; did you mean resnet18"):
        models.build(config({"name": "timm/resnet81"}), 7, 1, (96, 96))


def batches(folder: Path, configuration: RunConfig, **more: Any) -> Batches:
    data = configuration.train.data
    prepared = load(
        ranks.make_run(folder / "runs", configuration, prepare(data, folder, folder)),
        wanted=data.wanted(),
    )
    how = {"seed": 0, "global_batch_size": 50, "micro_batch_size": 50, "rank": 0, "world_size": 1}
    return Batches(
        prepared,
        data,
        sampling=Sampling(**{**how, **more}),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("size", [5, 24])
def test_pictures_are_resized_as_pillow_does(tmp_path: Path, size: int) -> None:
    found = batches(
        tmp_path, ranks.config(data={"name": "digits", "resize": size, "mean": [0.0], "std": [1.0]})
    )
    _, numbers = found.plan.index(range(1))
    images = found.at(0)[0].images
    assert images.shape == (50, 1, size, size)
    for number, image in zip(numbers[:8].tolist(), images.numpy(), strict=False):
        picture = Image.fromarray(found.images[number, 0].numpy()).resize(
            (size, size), Image.Resampling.BILINEAR
        )
        # Pillow rounds after each of its two passes
        assert np.abs(image[0] * 255 - np.asarray(picture)).max() <= 1


def test_a_resized_picture_has_the_same_bits_in_any_batch(tmp_path: Path) -> None:
    # no power of two: sums are rounded
    settings = ranks.config(data={"name": "digits", "resize": 29})
    whole = batches(tmp_path, settings).at(3)[0].images
    parts = batches(tmp_path, settings, micro_batch_size=7).at(3)
    assert len(parts) > 1 and torch.equal(whole, torch.cat([part.images for part in parts]))
    alone = batches(tmp_path, settings)
    picture = alone.images[alone.plan.index(range(3, 4))[1][:1]]
    assert torch.equal(whole[:1], alone.normalise(picture))


def test_a_cut_of_the_data_is_its_beginning(tmp_path: Path) -> None:
    settings = ranks.config(
        data={"name": "digits", "train_samples": 120, "test_samples": 30, "validation": 0.25}
    )
    data = settings.train.data
    run = ranks.make_run(tmp_path, settings, prepare(data, tmp_path, tmp_path))
    whole, cut = load(run), load(run, data.validation, wanted=data.wanted())
    assert {name: len(split) for name, split in cut.splits.items()} == {
        "train": 90,
        "val": 30,
        "test": 30,
    }
    assert np.array_equal(cut.splits["train"].images, whole.splits["train"].images[:120])
    assert np.array_equal(cut.splits["test"].labels, whole.splits["test"].labels[:30])
    assert len(whole.splits["train"]) == 1437


def test_a_run_trains_on_resized_pictures_of_a_cut(tmp_path: Path) -> None:
    model = {"name": "cnn", "channels": [4, 8], "hidden": [16]}
    settings = ranks.config(
        model=model,
        data={"name": "digits", "resize": 16, "train_samples": 200, "test_samples": 40},
        ranks=2,
    )
    made = prepare(settings.train.data, tmp_path, tmp_path)
    run = ranks.make_run(tmp_path / "runs", settings, made)
    assert ranks.train(run, "local-1", 2) == 0, ranks.logs(run)
    weights = torch.load(run.checkpoints / "latest/weights.pt", weights_only=True)
    assert weights["0.weight"].shape == (4, 1, 3, 3) and weights["7.weight"].shape == (
        16,
        8 * 2 * 2,
    )
    # 200 pictures, batch 100, two epochs
    assert "step 4 of 4" in ranks.logs(run) or "step 4/4" in ranks.logs(run)
