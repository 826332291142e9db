"""BatchNorm takes no micro-batch of one sample over 1x1 maps: refused before the start, and only
where torch would refuse it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import ranks
from tests.cli import Shell
from trainer import models
from trainer.config import micro_batches, steps
from trainer.config.data import Pictures
from trainer.config.run import TrainConfig

JOB = """
train:
  epochs: 2
  global_batch_size: 64
  data: DATA
  model: MODEL
  optimizer: {name: sgd, lr: 0.01}
resources: {nproc_per_node: 1, cpus_per_task: 1}
tracking: {mode: disabled}
"""
DEEP = {"name": "resnet", "width": 4, "blocks": [1, 1, 1, 1]}  # of 8x8 pictures it makes 1x1 maps
MODELS: list[dict[str, Any]] = [
    DEEP,
    {**DEEP, "blocks": [1]},
    {**DEEP, "blocks": [1, 2], "stem": "7x7"},
    {**DEEP, "blocks": [1] * 6},
    {"name": "densenet", "growth": 2, "convolutions": [1, 1]},
    {"name": "densenet", "growth": 2, "convolutions": [1, 1, 1]},
    {"name": "lenet", "batch_norm": True},
    {"name": "lenet"},
    {"name": "mlp", "hidden": [4]},
    {"name": "fcn", "width": 4},
]


def train(**settings: Any) -> TrainConfig:
    return ranks.config(**{"model": DEEP, "global_batch_size": 64, **settings}).train


@pytest.mark.parametrize("model", MODELS, ids=json.dumps)
def test_the_smallest_map_is_that_of_the_model_itself(model: dict[str, Any]) -> None:
    config = train(model=model).model
    refused, allowed = 0, 0
    sizes = (
        [32, 64]
        if model["name"] == "fcn"
        else [1, 2, 3, 5, 8, 9, 13, 16, 17, 21, 28, 31, 32, 33, 40, 64]
    )
    for height in sizes:
        for width in (height, sizes[0], sizes[-1]):
            if min(height, width) < config.smallest():
                continue
            given = Pictures(1, height, width, 3)
            made = models.build_on_meta(config, 3, 1, (height, width)).train()
            try:
                made(torch.zeros((1, 1, height, width), device="meta"))
                fits = True
            except ValueError as error:
                assert "more than 1 value per channel" in str(error)
                fits = False
            assert fits == (config.normalised_pixels(given) != 1), given
            refused += not fits
            allowed += fits
    assert allowed or model.get("batch_norm") or model["name"] == "lenet"
    assert refused or config.normalised_pixels(Pictures(1, 64, 64, 3)) != 1


@pytest.mark.parametrize(
    ("samples", "batch", "most", "of_run", "smallest"),
    [
        (65, 64, 64, 4, 1),
        (65, 64, 64, 1, 64),
        (64, 64, 64, 1, 64),
        (66, 64, 64, 4, 2),
        (66, 64, 1, 4, 1),
        (5, 5, 2, 9, 1),
        (6, 6, 2, 9, 2),
        (1, 64, 64, 2, 1),
        (100, 64, 16, 4, 12),
    ],
)
def test_the_smallest_micro_batch(
    samples: int, batch: int, most: int, of_run: int, smallest: int
) -> None:
    assert steps.smallest_micro_batch(samples, batch, most, of_run) == smallest


@pytest.mark.parametrize(
    ("settings", "prepared", "count", "hint"),
    [
        ({}, 65, 1, "try 63"),
        ({}, 64, 1, None),
        ({"max_steps": 1}, 65, 1, None),
        ({"micro_batch_size": 1}, 64, 1, "make train.micro"),
        ({"global_batch_size": 4}, 64, 4, "try 6"),  # a rank for each sample
        ({"global_batch_size": 4}, 64, 2, None),
        ({"parity": "bitwise", "parity_shards": 32, "global_batch_size": 33}, 66, 1, "try "),
        ({"model": {**DEEP, "blocks": [1, 1]}}, 65, 1, None),
        ({"data": {"name": "digits", "train_samples": 65}}, 1437, 1, "try 63"),
        # 65 are left
        ({"data": {"name": "digits", "validation": 0.1, "train_samples": 72}}, 1437, 1, "try 63"),
        ({"freeze": ["*", "!fc.*"], "freeze_batch_norm": True}, 65, 1, None),  # torch is asked
    ],
)
def test_ranks_accumulation_and_cuts(
    settings: dict[str, Any], prepared: int, count: int, hint: str | None
) -> None:
    said = micro_batches.problem(dict(train(**settings)), prepared, count)
    if hint is None:
        assert said is None
    else:
        assert (
            said is not None and f"; {hint}" in said and "give a micro-batch of one sample" in said
        )


def job(folder: Path, data: str, model: dict[str, Any], name: str = "bn") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(JOB.replace("DATA", data).replace("MODEL", json.dumps(model)))
    return str(path)


SYNTHETIC = "{name: synthetic, samples: 65, size: 8, channels: 1, classes: 3}"


def test_check_and_submit_say_so_by_the_settings(tmp_path: Path) -> None:
    shell, path = Shell(tmp_path / "runs", cwd=tmp_path), job(tmp_path, SYNTHETIC, DEEP)
    said = (
        f"{Path(path).name}:4:3: train.global_batch_size: 65 train samples in batches of 64 give a"
        " micro-batch of one sample, and resnet on 8x8 pictures has BatchNorm over 1x1 maps, which"
        " takes no single value a channel; try 63\n"
    )
    assert shell.run("check", path, code=2) == said
    assert said in shell.run("submit", path, code=2)
    assert shell.run("check", path, "--set", "train.global_batch_size=63") == f"{path}: right\n"


@pytest.mark.long
def test_submit_and_the_deep_check_say_so_by_the_files(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("val", 1)):
        for label in ("ant", "bee"):
            (tmp_path / "data/insects" / split / label).mkdir(parents=True)
            for i in range(count if split == "val" else count - (label == "bee")):  # 5 and 4
                pixels = np.random.RandomState(i).randint(0, 256, (9, 9, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data/insects" / split / label / f"{i}.png")
    data = "{name: imagefolder, folder: insects, size: 8}"
    shell = Shell(tmp_path / "runs", cwd=tmp_path)
    path = job(tmp_path, data, DEEP)
    of_data = ("--data-dir", str(tmp_path / "data"), "--set", "train.global_batch_size=8")
    said = (
        "train.global_batch_size: 9 train samples in batches of 8 give a micro-batch of one sample,"
        " and resnet on 8x8"
    )
    # it looks at no files
    assert shell.run("check", path, "--set", "train.global_batch_size=8") == f"{path}: right\n"
    assert said in shell.run("check", "--deep", path, *of_data, code=2)
    assert said in shell.run("submit", path, *of_data, code=2)
    frozen = ("--set", 'train.freeze=["*", "!fc.*"]', "--set", "train.freeze_batch_norm=true")
    assert "BatchNorm" not in shell.run("check", "--deep", path, *of_data, *frozen)
    partly = ("--set", 'train.freeze=["stem.*"]', "--set", "train.freeze_batch_norm=true")
    assert said in shell.run("submit", path, *of_data, *partly, code=2)  # torch was asked
    assert not list(shell.runs.glob("*/attempts"))
