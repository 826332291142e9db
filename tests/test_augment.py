"""Augmentations: torchvision's results for the same draws, and its distributions; the same bits
however a piece is cut. Mixing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from launch import report
from tests import ranks
from tests.test_pictures import torchvision
from tests.test_resume import prepared  # noqa: F401
from trainer import mix
from trainer.batches import augment
from trainer.batches.loader import crop_box
from trainer.config.data import RandomResizedCrop
from trainer.config.files.layout import RunDir

CHAIN: list[dict[str, Any]] = [
    {"name": "horizontal_flip"},
    {"name": "vertical_flip", "probability": 0.3},
    {"name": "random_crop", "padding": 2},
    {"name": "random_resized_crop", "scale": [0.2, 1.0]},
    {"name": "colour_jitter", "brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.5},
]
N = 4000


def chain(*settings: dict[str, Any]) -> list[Any]:
    return ranks.config(data={"name": "synthetic", "augment": list(settings)}).train.data.augment


def noise(n: int = 1, channels: int = 3, height: int = 12, width: int = 16) -> Tensor:
    return torch.from_numpy(
        np.random.RandomState(0).randint(0, 256, (n, channels, height, width)).astype(np.uint8)
    )


def applied(images: Tensor, *settings: dict[str, Any], epoch: int = 3) -> Tensor:
    return augment.apply(images, torch.arange(len(images)), epoch, chain(*settings), seed=5)


def repeated(image: Tensor, setting: dict[str, Any]) -> Tensor:
    """N draws of one picture."""
    return applied(image.expand(N, -1, -1, -1), setting)


def distance(ours: Any, theirs: Any) -> float:
    """Kolmogorov and Smirnov's: the largest difference of two empirical distributions."""
    a, b = (np.sort(np.asarray(x, float)) for x in (ours, theirs))
    every = np.concatenate((a, b))
    return float(
        np.abs(
            np.searchsorted(a, every, "right") / len(a)
            - np.searchsorted(b, every, "right") / len(b)
        ).max()
    )


# two samples of one distribution are farther apart once in a thousand times
FAR = 1.95 * (2 / N) ** 0.5


@pytest.mark.parametrize("setting", CHAIN, ids=[str(s["name"]) for s in CHAIN])
def test_a_sample_does_not_depend_on_what_is_beside_it(setting: dict[str, Any]) -> None:
    images = noise(65)
    together = applied(images, setting)
    alone = [
        augment.apply(images[i : i + 1], torch.tensor([i]), 3, chain(setting), 5) for i in range(65)
    ]
    assert (
        torch.equal(together, torch.cat(alone))
        and together.dtype == torch.uint8
        and not torch.equal(together, images)
    )
    assert not torch.equal(together, applied(images, setting, epoch=4))


def test_the_order_of_the_list_counts() -> None:
    images, crop, jitter = noise(8), CHAIN[2], CHAIN[4]
    assert not torch.equal(applied(images, crop, jitter), applied(images, jitter, crop))


def test_flips_and_crops() -> None:
    image = noise()
    for name, axis in (("horizontal_flip", 3), ("vertical_flip", 2)):
        for probability in (0.5, 0.25, 1.0):
            drawn = repeated(image, {"name": name, "probability": probability})
            flipped = (drawn == image.flip(axis)).flatten(1).all(1)
            assert (flipped | (drawn == image).flatten(1).all(1)).all()
            assert float(flipped.float().mean()) == pytest.approx(
                probability, abs=4 * (0.25 / N) ** 0.5
            )
    padded = torch.nn.functional.pad(image, (2,) * 4)
    windows = torch.stack(
        [padded[0, :, y : y + 12, x : x + 16] for y in range(5) for x in range(5)]
    )
    drawn = repeated(image, {"name": "random_crop", "padding": 2})
    which = (drawn[:, None] == windows).flatten(2).all(2)
    assert (which.sum(1) == 1).all() and (which.float().mean(0) - 1 / 25).abs().max() < 4 * (
        0.04 / N
    ) ** 0.5


@pytest.mark.parametrize(
    ("scale", "ratio"),
    [([0.08, 1.0], [0.75, 4 / 3]), ([0.1, 1.0], [0.5, 2.0]), ([0.9, 1.0], [3.0, 4.0])],
)
def test_pieces_are_torchvisions_batched_and_by_the_sample(
    scale: list[float], ratio: list[float]
) -> None:
    transforms = torchvision("transforms")
    config = RandomResizedCrop(scale=scale, ratio=ratio)
    draws = augment._draws(1, torch.arange(N))
    left, top, width, height = augment.boxes(draws, 64, 48, config).double()
    torch.manual_seed(0)
    theirs = [
        transforms.RandomResizedCrop.get_params(torch.zeros(3, 48, 64), scale, ratio)
        for _ in range(N)
    ]
    t, le, h, w = np.array(theirs, float).T
    single = np.array([crop_box(64, 48, config, 0, 0, sample) for sample in range(N)], float).T
    for other in ((le, t, w, h), single):
        for ours, one in zip((left, top, width, height), other, strict=True):
            assert distance(ours, one) < FAR
        assert distance(width / height, other[2] / other[3]) < FAR


def test_a_piece_is_resized_as_torchvision_resizes_it() -> None:
    functional = torchvision("transforms.v2.functional")
    images, config = noise(200), chain(CHAIN[3])[0]
    draw = augment._draws(9, torch.arange(200))
    ours = augment.resized_crop(images, draw, config)
    for image, one, (left, top, width, height) in zip(
        images, ours, augment.boxes(draw, 16, 12, config).T.tolist(), strict=True
    ):
        theirs = functional.resized_crop(
            image.float(), top, left, height, width, [12, 16], antialias=True
        )
        assert (theirs - one.float()).abs().max() <= 0.51  # rounding


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (augment.brightness, "adjust_brightness", (0.5, 1.5)),
        (augment.contrast, "adjust_contrast", (0.3, 1.7)),
        (augment.saturation, "adjust_saturation", (0.0, 1.6)),
        (augment.hue, "adjust_hue", (-0.5, -0.1, 0.25, 0.5)),
    ],
)
def test_colours_change_as_torchvision_changes_them(
    ours: Any, theirs: str, factors: tuple[float, ...]
) -> None:
    functional = torchvision("transforms.v2.functional")
    images = noise(50).float()
    images[0] = 128.0  # grey has no hue
    for factor in factors:
        expected = getattr(functional, theirs)(images / 255, factor) * 255
        found = ours(images, torch.full((50, 1, 1, 1), factor))
        # the mean grey is of whole numbers, as Pillow's
        assert (found - expected).abs().max() < 0.75


def test_jitter_is_distributed_as_torchvisions() -> None:
    transforms = torchvision("transforms.v2")
    image = noise(1, 3, 2, 2)
    ours = repeated(image, CHAIN[4])
    torch.manual_seed(0)
    jitter = transforms.ColorJitter(0.5, 0.5, 0.5, 0.5)
    theirs = torch.cat([jitter(image) for _ in range(N)])
    for place in range(12):
        assert distance(ours.flatten(1)[:, place], theirs.flatten(1)[:, place]) < FAR


def test_jitter_takes_only_what_it_is_given() -> None:
    drawn = repeated(noise(1, 1, 2, 2), {"name": "colour_jitter", "brightness": 0.4}).float()
    factor = drawn / noise(1, 1, 2, 2).float()
    unclamped = drawn.flatten(1).amax(1) < 255
    assert 0.58 < float(factor.min()) < 0.62 and float(factor[unclamped].max()) < 1.42


def mixed(
    name: str, alpha: float = 1.0, step: int = 2
) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[float]]:
    config = ranks.config(mix={"name": name, "alpha": alpha}).train
    images, labels = noise(6).float(), torch.arange(6)
    return images, *mix.mixed(images, labels, config, step, chunk=0)  # type: ignore[return-value]


def test_mixup() -> None:
    images, found, labels, parts = mixed("mixup")  # type: ignore[misc]
    assert (
        labels[1].tolist() == [5, 0, 1, 2, 3, 4]
        and 0 < parts[0] < 1
        and sum(parts) == pytest.approx(1)
    )
    torch.testing.assert_close(found[1], images[1] * parts[0] + images[0] * parts[1])
    drawn = [mixed("mixup", 0.2, step)[3][0] for step in range(N)]
    assert distance(drawn, np.random.RandomState(1).beta(0.2, 0.2, N)) < FAR
    logits = torch.randn(6, 6)
    losses = [torch.nn.functional.cross_entropy(logits, some, reduction="sum") for some in labels]
    soft = sum(
        part * torch.nn.functional.one_hot(some, 6)
        for part, some in zip(parts, labels, strict=True)
    )
    assert float(mix.weighted(losses, parts)) == pytest.approx(
        float(-(soft * logits.log_softmax(1)).sum()), rel=1e-5
    )


def test_cutmix_counts_the_pixels_that_are_left() -> None:
    left = []
    for step in range(300):
        images, found, labels, parts = mixed("cutmix", 1.0, step)  # type: ignore[misc]
        own = (found == images).all(1)
        assert ((found == images.roll(1, 0)).all(1) | own).all()
        assert (
            parts[0] == pytest.approx(float(own[0].float().mean()), abs=1e-6) and labels[1][0] == 5
        )
        left.append(parts[0])
    assert min(left) < 0.2 and max(left) > 0.95


@pytest.mark.parametrize(
    ("name", "world_size", "workers"),
    [("mixup", 1, 0), ("mixup", 2, 0), ("cutmix", 1, 0), ("cutmix", 2, 1)],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    tmp_path: Path,
    prepared: dict[str, Any],  # noqa: F811
    name: str,
    world_size: int,
    workers: int,
) -> None:
    data = {
        "name": "digits",
        "augment": [*CHAIN[:4], {"name": "colour_jitter", "brightness": 0.5, "contrast": 0.5}],
    }
    train = {"epochs": 1, "data": data, "mix": {"name": name, "alpha": 0.4}}
    whole = ranks.completed(tmp_path, prepared, world_size, **train)
    config = ranks.config(ranks=world_size, **train, execution={"stop_after_step": 7})
    run = ranks.make_run(tmp_path / "stopped", config, prepared)
    assert ranks.train(run, "local-1", world_size) == 0, ranks.logs(run)
    # on through the loader, whose bits are the same
    ranks.set_execution(run, stop_after_step=None, device_data_gb=0.0, workers=workers)
    assert ranks.train(run, "local-2", world_size) == 0, ranks.logs(run)
    assert (
        ranks.outcome(run, "local-2").weights_sha256
        == ranks.outcome(whole, "local-1").weights_sha256
    )
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_the_same_mixture_for_any_number_of_ranks(tmp_path: Path, prepared: dict[str, Any]) -> None:  # noqa: F811
    train = {"max_steps": 3, "parity": "bitwise", "data": {"name": "digits", "augment": CHAIN[:1]}}
    train["mix"] = {"name": "mixup", "alpha": 1.0}
    runs = [ranks.completed(tmp_path / str(size), prepared, size, **train) for size in (1, 2)]
    assert len({ranks.outcome(run, "local-1").weights_sha256 for run in runs}) == 1


def test_ten_draws_of_each_are_shown(tmp_path: Path, prepared: dict[str, Any]) -> None:  # noqa: F811
    run = ranks.completed(
        tmp_path, prepared, 1, max_steps=1, data={"name": "digits", "augment": CHAIN[:3]}
    )
    rows = json.loads(run.augmentations.read_text())["rows"]
    assert [row["name"] for row in rows] == [
        "1. horizontal flip",
        "2. vertical flip",
        "3. random crop",
        "all, in this order",
    ]
    assert (
        all(len(row["pngs"]) == 10 for row in rows)
        and len(set(rows[0]["pngs"])) == 2
        and len(set(rows[3]["pngs"])) > 5
    )
    page = report.write(RunDir(run.path)).read_text()
    assert (
        "One train picture, augmented" in page
        and page.count("One train picture after 3. random crop") == 10
    )
