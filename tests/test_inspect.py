"""summary and check --deep: shapes and parameters worked out by hand for each job's model; what is
told without data.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from launch.spec import load
from tests import cli, ranks
from trainer import models
from trainer.config.data import VOCData
from trainer.tools import inspect

BOOK = (1, 10)  # channels and classes of Fashion-MNIST


def stage(width: int, before: int) -> int:
    """Parameters of two basic blocks: four 3x3 convolutions without bias, BatchNorm each; a 1x1 one
    where the width changes.
    """
    shortcut = before * width + 2 * width if before != width else 0
    return 9 * before * width + 3 * 9 * width * width + 4 * 2 * width + shortcut


def inception(before: int, a: int, b: tuple[int, int], c: tuple[int, int], d: int) -> int:
    """Parameters of an Inception block: each convolution has a number a channel of its bias."""
    paths = [
        before * a + a,
        before * b[0] + b[0],
        9 * b[0] * b[1] + b[1],
        before * c[0] + c[0],
        25 * c[0] * c[1] + c[1],
    ]
    return sum(paths) + before * d + d


LENET = [
    (6, 24, 24),
    (6, 24, 24),
    (6, 12, 12),
    (16, 8, 8),
    (16, 8, 8),
    (16, 4, 4),
    (256,),
    (120,),
    (120,),
    (84,),
    (84,),
    (10,),
]
LENET_PARAMETERS = (25 + 1) * 6 + (25 * 6 + 1) * 16 + 257 * 120 + 121 * 84 + 85 * 10
STEM = 49 * 64 + 64 + 2 * 64  # 7x7 from one channel, with its bias, and BatchNorm
BY_HAND: dict[str, tuple[int, list[tuple[int, ...]]]] = {  # of --depth 1
    "fashion_softmax": (785 * 10, [(784,), (10,)]),
    "fashion_mlp": (785 * 256 + 257 * 10, [(784,), (256,), (256,), (10,)]),
    "fashion_dropout": (785 * 256 + 257 * 256 + 257 * 10, [(784,), *[(256,)] * 6, (10,)]),
    "fashion_lenet": (LENET_PARAMETERS, LENET),
    "fashion_lenet_bn": (
        LENET_PARAMETERS + 2 * (6 + 16 + 120 + 84),
        [
            *[(6, 24, 24)] * 3,
            (6, 12, 12),
            *[(16, 8, 8)] * 3,
            (16, 4, 4),
            (256,),
            *[(120,)] * 3,
            *[(84,)] * 3,
            (10,),
        ],
    ),
    "fashion_alexnet": (
        (121 + 1) * 96
        + (25 * 96 + 1) * 256
        + (9 * 256 + 1) * 384
        + (9 * 384 + 1) * 384
        + (9 * 384 + 1) * 256
        + 6401 * 4096
        + 4097 * 4096
        + 4097 * 10,
        [
            *[(96, 54, 54)] * 2,
            (96, 26, 26),
            *[(256, 26, 26)] * 2,
            (256, 12, 12),
            *[(384, 12, 12)] * 4,
            *[(256, 12, 12)] * 2,
            (256, 5, 5),
            (6400,),
            *[(4096,)] * 6,
            (10,),
        ],
    ),
    "fashion_vgg11": (
        (9 + 1) * 8
        + (9 * 8 + 1) * 16
        + (9 * 16 + 1) * 32
        + (9 * 32 + 1) * 32
        + (9 * 32 + 1) * 64
        + 3 * (9 * 64 + 1) * 64
        + 3137 * 4096
        + 4097 * 4096
        + 4097 * 10,
        [
            *[(8, 224, 224)] * 2,
            (8, 112, 112),
            *[(16, 112, 112)] * 2,
            (16, 56, 56),
            *[(32, 56, 56)] * 4,
            (32, 28, 28),
            *[(64, 28, 28)] * 4,
            (64, 14, 14),
            *[(64, 14, 14)] * 4,
            (64, 7, 7),
            (3136,),
            *[(4096,)] * 6,
            (10,),
        ],
    ),
    "fashion_nin": (
        (121 + 1) * 96
        + 2 * 97 * 96
        + (25 * 96 + 1) * 256
        + 2 * 257 * 256
        + (9 * 256 + 1) * 384
        + 2 * 385 * 384
        + (9 * 384 + 1) * 10
        + 2 * 11 * 10,
        [
            *[(96, 54, 54)] * 6,
            (96, 26, 26),
            *[(256, 26, 26)] * 6,
            (256, 12, 12),
            *[(384, 12, 12)] * 6,
            *[(384, 5, 5)] * 2,
            *[(10, 5, 5)] * 6,
            (10, 1, 1),
            (10,),
        ],
    ),
    "fashion_googlenet": (
        (49 + 1) * 64
        + 65 * 64
        + (9 * 64 + 1) * 192
        + inception(192, 64, (96, 128), (16, 32), 32)
        + inception(256, 128, (128, 192), (32, 96), 64)
        + inception(480, 192, (96, 208), (16, 48), 64)
        + inception(512, 160, (112, 224), (24, 64), 64)
        + inception(512, 128, (128, 256), (24, 64), 64)
        + inception(512, 112, (144, 288), (32, 64), 64)
        + inception(528, 256, (160, 320), (32, 128), 128)
        + inception(832, 256, (160, 320), (32, 128), 128)
        + inception(832, 384, (192, 384), (48, 128), 128)
        + 1025 * 10,
        [
            *[(64, 48, 48)] * 2,
            *[(64, 24, 24)] * 3,
            *[(192, 24, 24)] * 2,
            (192, 12, 12),
            (256, 12, 12),
            (480, 12, 12),
            (480, 6, 6),
            *[(512, 6, 6)] * 3,
            (528, 6, 6),
            (832, 6, 6),
            (832, 3, 3),
            (832, 3, 3),
            (1024, 3, 3),
            (1024, 1, 1),
            (1024,),
            (10,),
        ],
    ),
    "fashion_resnet18": (
        49 * 64
        + 2 * 64
        + stage(64, 64)
        + stage(128, 64)
        + stage(256, 128)
        + stage(512, 256)
        + 513 * 10,
        [(64, 24, 24), (512, 3, 3), (512, 1, 1), (512,), (10,)],
    ),
    "fashion_densenet": (
        STEM
        + sum(
            2 * c + (9 * c + 1) * 32
            for before in (64, 96, 112, 120)
            for c in range(before, before + 128, 32)
        )
        + sum(2 * c + (c + 1) * c // 2 for c in (192, 224, 240))
        + 2 * 248
        + 249 * 10,
        [
            *[(64, 48, 48)] * 3,
            (64, 24, 24),
            (192, 24, 24),
            (96, 24, 24),
            (96, 12, 12),
            (224, 12, 12),
            (112, 12, 12),
            (112, 6, 6),
            (240, 6, 6),
            (120, 6, 6),
            (120, 3, 3),
            *[(248, 3, 3)] * 3,
            (248, 1, 1),
            (248,),
            (10,),
        ],
    ),
    "blitz_cifar": (
        (75 + 1) * 6 + (150 + 1) * 16 + 401 * 120 + 121 * 84 + 85 * 10,
        [
            *[(6, 28, 28)] * 2,
            (6, 14, 14),
            *[(16, 10, 10)] * 2,
            (16, 5, 5),
            (400,),
            *[(120,)] * 2,
            *[(84,)] * 2,
            (10,),
        ],
    ),
    "cnn_cifar": (
        (27 + 1) * 6 + (54 + 1) * 16 + 577 * 120 + 121 * 84 + 85 * 10,
        [
            *[(6, 30, 30)] * 2,
            (6, 15, 15),
            *[(16, 13, 13)] * 2,
            (16, 6, 6),
            (576,),
            *[(120,)] * 2,
            *[(84,)] * 2,
            (10,),
        ],
    ),
    "resnet_cifar": (
        27 * 64
        + 2 * 64
        + stage(64, 64)
        + stage(128, 64)
        + stage(256, 128)
        + stage(512, 256)
        + 513 * 10,
        [(64, 32, 32), (512, 4, 4), (512, 1, 1), (512,), (10,)],
    ),
}


def looked_at(job: str) -> dict[str, Any]:
    train = load.load(load.find(job, cli.PROJECT), without_gpu=False).train
    config = ranks.config().model_copy(update={"train": train})
    return inspect.look_at_model(config, train.data.pictures())


@pytest.mark.parametrize("job", BY_HAND)
def test_shapes_and_parameters_are_those_worked_out_by_hand(job: str) -> None:
    parameters, shapes = BY_HAND[job]
    found = looked_at(job)
    assert found["parameters"] == found["layers"][0]["parameters"] == parameters
    assert [tuple(row["shape"]) for row in found["layers"] if row["depth"] == 1] == shapes
    assert sum(row["parameters"] for row in found["layers"] if row["leaf"]) == parameters


@pytest.mark.parametrize(("job", "classes"), [("voc_fcn", 21), ("voc_fcn_camvid", 11)])
def test_of_a_segmentation_each_pixel_has_its_scores(job: str, classes: int) -> None:
    found = looked_at(job)
    assert found["layers"][0]["shape"] == [classes, 320, 480]
    backbone = (
        3 * 49 * 64 + 2 * 64 + stage(64, 64) + stage(128, 64) + stage(256, 128) + stage(512, 256)
    )
    assert found["parameters"] == backbone + 513 * classes + (64 * 64 * classes + 1) * classes


def test_a_model_that_gives_scores_to_no_pixel_is_told() -> None:
    config = ranks.config()
    # its resnet is for whole pictures
    scenes = config.train.model_copy(update={"data": VOCData(name="voc", crop=[32, 64])})
    with pytest.raises(
        inspect.DoesNotFit, match=r"resnet gives \[21\] a picture; expected \[21, 32, 64\]"
    ):
        inspect.look_at_model(config.model_copy(update={"train": scenes}), scenes.data.pictures())


def test_lenet_has_44_426_parameters_and_two_flops_for_each_multiplication() -> None:
    found = looked_at("fashion_lenet")
    assert found["parameters"] == 44_426
    convolutions = 24 * 24 * 6 * 25 + 8 * 8 * 16 * 6 * 25
    assert found["flops"] == 2 * (convolutions + 256 * 120 + 120 * 84 + 84 * 10)
    assert found["flops"] == sum(row["flops"] for row in found["layers"] if row["leaf"])


def test_the_memory_of_a_rank_is_what_torch_keeps() -> None:
    config = ranks.config(
        model={"name": "mlp", "hidden": [7]},
        precision="bf16",
        global_batch_size=6,
        ranks=2,
        ema_decay=0.9,
    )
    found = inspect.look_at_model(config, config.train.data.pictures())
    numbers = 65 * 7 + 8 * 10
    # the pictures, flat, and what ReLU gives, which serves the next layer's weights too
    kept = 3 * (64 + 7)
    # weights, gradients, momentum, average
    assert found["memory_bytes"] == 4 * numbers * 4 + 4 * kept // 2
    model = models.build(config.train.model, 10, 1, (8, 8))
    stored: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.zeros(3, 1, 8, 8))
    assert output.requires_grad and sum(stored.values()) == 4 * kept


def test_a_model_that_takes_no_such_pictures_is_told(tmp_path: Path) -> None:
    job = written(tmp_path, "{name: cifar10}", "{name: torchvision/inception_v3}")
    assert cli.Shell(tmp_path).run("check", str(job), code=0) == f"{job}: right\n"
    told = cli.Shell(tmp_path).run("check", "--deep", str(job), code=2)
    assert (
        "train.model: torchvision/inception_v3 takes no pictures of 3x32x32 (cifar10): " in told
        and "Traceback" not in told
    )


def written(folder: Path, data: str, model: str, more: str = "") -> Path:
    path = folder / "job.yaml"
    path.write_text(
        f"train:\n  epochs: 1\n  global_batch_size: 8\n  data: {data}\n  model: {model}\n"
        f"  optimizer: {{name: sgd, lr: 0.1}}\n{more}"
    )
    return path


def test_summary_prints_layers_blocks_and_the_fallback(tmp_path: Path) -> None:
    shell = cli.Shell(tmp_path)
    lines = shell.run("summary", "digits", "--depth", "1").splitlines()
    assert lines[0] == "input 1x8x8" and [line.split()[0] for line in lines[2:-1]] == [
        "stem",
        "stages",
        "pool",
        "dropout",
        "fc",
    ]
    assert lines[3].split()[1:4] == ["Sequential", "64x2x2", "76,928"]
    assert lines[-1].startswith("model: resnet on 1x8x8, 10 classes: 77,754 parameters, ")
    told = shell.run("summary", "resnet_cifar", "--fallback", "--data-dir", str(tmp_path))
    assert "308,826 parameters" in told and "stages.3.shortcut.1" in told
    assert not list(tmp_path.iterdir())  # nothing is written


def pictures(folder: Path, classes: int) -> None:
    for split in ("train", "val"):
        for label in range(classes):
            place = folder / split / f"class_{label}"
            place.mkdir(parents=True)
            Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(place / "1.png")


def test_check_deep_takes_the_classes_from_the_data_and_says_where_to_put_it(
    tmp_path: Path,
) -> None:
    job = written(
        tmp_path, "{name: imagefolder, folder: birds, size: 16}", "{name: mlp, hidden: []}"
    )
    shell, deep = cli.Shell(tmp_path), ("check", "--deep", "--data-dir", str(tmp_path), str(job))
    told = shell.run(*deep, code=1)
    assert (
        f"there is no folder {tmp_path / 'birds'}" in told
        and "--data-dir" in told
        and "BATCHYARD_DATA" in told
    )
    assert "model: mlp on 3x16x16, 1000 classes (taken for so many): 769,000 parameters" in told
    pictures(tmp_path / "birds", 3)
    told = shell.run(*deep)
    assert (
        "data: imagefolder birds, 3 classes" in told
        and f"3 classes: {769 * 3:,} parameters" in told
    )


@pytest.mark.long
def test_check_deep_passes_on_the_stand_in_and_says_so(tmp_path: Path) -> None:
    stand_in = "fallback: {train: {data: {folder: bees}, model: {hidden: [4]}}}\n"
    job = written(
        tmp_path,
        "{name: imagefolder, folder: birds, size: 16}",
        "{name: mlp, hidden: []}",
        stand_in,
    )
    shell, deep = cli.Shell(tmp_path), ("check", "--deep", "--data-dir", str(tmp_path), str(job))
    pictures(tmp_path / "bees", 2)
    told = shell.run(*deep)
    assert (
        "data: imagefolder birds is not there or not right:" in told
        and "stand-in data: imagefolder bees, 2 classes" in told
    )
    pictures(tmp_path / "birds", 3)
    assert "stand-in" not in shell.run(*deep)


@pytest.mark.long
def test_a_cut_of_the_same_data_is_no_stand_in(tmp_path: Path) -> None:
    job = written(
        tmp_path,
        "{name: imagefolder, folder: birds, size: 16}",
        "{name: mlp, hidden: []}",
        "fallback: {train: {data: {size: 8}}}\n",
    )
    told = cli.Shell(tmp_path).run("check", "--deep", "--data-dir", str(tmp_path), str(job), code=1)
    assert "stand-in" not in told and "fallback model: mlp on 3x8x8" in told


@pytest.mark.long
def test_check_deep_looks_at_each_model_and_data_of_a_sweep_once(tmp_path: Path) -> None:
    sweep = "sweep: {grid: {train.model.hidden: [[], [4]], train.optimizer.lr: [0.1, 0.2, 0.3]}}\n"
    job = written(
        tmp_path, "{name: imagefolder, folder: birds, size: 16}", "{name: mlp, hidden: []}", sweep
    )
    shell, deep = cli.Shell(tmp_path), ("check", "--deep", "--data-dir", str(tmp_path), str(job))
    pictures(tmp_path / "birds", 3)
    told = [line.removeprefix(f"{job}: ") for line in shell.run(*deep).splitlines()]
    assert told[0] == "right, 6 points"
    assert told[1].startswith(
        "train.model.hidden=[] train.optimizer.lr=0.1: model: mlp on 3x16x16, 3 classes: 2,307"
        " parameters"
    )
    other = "train.model.hidden=[4] train.optimizer.lr=0.1: model: mlp on 3x16x16, 3 classes"
    assert told[3].startswith(f"{other}: {769 * 4 + 15:,} parameters")
    assert told[2] == "data: imagefolder birds, 3 classes"  # once: it is the same
    assert told[4:] == [
        "looked 2 times for 6 points: once for all of the same model, data, batch and memory"
    ]
    (tmp_path / "birds").rename(tmp_path / "bees")
    assert "data: imagefolder birds is not there or not right:" in shell.run(*deep, code=1)


@pytest.mark.long
def test_check_deep_finds_the_mistake_of_a_later_point(tmp_path: Path) -> None:
    models = (
        "[{name: mlp, hidden: []}, {name: torchvision/inception_v3}, {name: torchvision/alexnet}]"
    )
    sweep = f"sweep: {{grid: {{train.model: {models}}}}}\n"
    job = written(
        tmp_path, "{name: imagefolder, folder: birds, size: 32}", "{name: mlp, hidden: []}", sweep
    )
    told = cli.Shell(tmp_path).run("check", "--deep", "--data-dir", str(tmp_path), str(job), code=2)
    assert (
        'train.model={"name": "torchvision/inception_v3"}: train.model: torchvision/inception_v3'
        " takes no pictures" in told
    )
    assert (
        'train.model={"name": "torchvision/alexnet"}: train.model: ' in told
        and "Traceback" not in told
    )
    # what is right is told all the same
    assert 'train.model={"name": "mlp", "hidden": []}: model: mlp on 3x32x32' in told


@pytest.mark.long
def test_check_deep_says_whose_data_are_not_there_and_looks_at_each_batch(tmp_path: Path) -> None:
    sweep = "sweep: {grid: {train.data.folder: [birds, bees], train.global_batch_size: [8, 4]}}\n"
    job = written(
        tmp_path, "{name: imagefolder, folder: birds, size: 16}", "{name: mlp, hidden: []}", sweep
    )
    pictures(tmp_path / "birds", 3)
    told = cli.Shell(tmp_path).run("check", "--deep", "--data-dir", str(tmp_path), str(job), code=1)
    assert (
        "train.data.folder=birds train.global_batch_size=8: data: imagefolder birds, 3 classes"
        in told
    )
    assert (
        "train.data.folder=bees train.global_batch_size=8: data: imagefolder bees is not there or"
        " not right:" in told
    )
    assert (
        "train.global_batch_size=4: model: mlp" in told
        and "at 4 pictures" in told
        and "looked 4 times for 4 points" in told
    )


@pytest.mark.long
def test_check_deep_on_the_real_data() -> None:
    folder = Path(os.environ.get("BATCHYARD_DATA", ""))
    if not (folder / "FashionMNIST").is_dir() or not (folder / "cifar-10-batches-py").is_dir():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            "BATCHYARD_DATA names no folder with the real data sets"
        )
    told = cli.Shell(folder).run(
        "check",
        "--deep",
        "fashion_vgg11",
        "cnn_cifar",
        "--data-dir",
        str(folder),
        "--set",
        "execution.allow_unverified_data=true",
    )
    assert (
        "fashion_vgg11: data: fashion_mnist, 10 classes" in told
        and "cnn_cifar: data: cifar10, 10 classes" in told
    )
