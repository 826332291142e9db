"""Segmentation: masks of both kinds are the same masks, a picture and its mask are cut out alike,
figures are exact over ranks.
"""

from __future__ import annotations

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import ranks
from trainer import models, tasks
from trainer.batches.batches import Batches, Sampling
from trainer.batches.loader import Loader
from trainer.checkpoints import files
from trainer.config.files.json_files import read_json, read_jsonl
from trainer.config.files.layout import RunDir
from trainer.datasets.prepare import prepare
from trainer.models.fcn import bilinear
from trainer.prepared import masks
from trainer.prepared.arrays import load
from trainer.prepared.errors import DataError
from trainer.tasks import MaskTally, iou
from trainer.weights import load as pretrained

CLASSES = ["ground", "red", "green"]
PAINTS = np.array([[90, 90, 90], [220, 40, 40], [40, 200, 60]])
DATA = {"name": "voc", "folder": "scenes", "classes": CLASSES, "crop": [32, 64]}
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "global_batch_size": 4,
    "data": DATA,
    "model": {"name": "fcn", "width": 4},
    "schedule": {"name": "constant"},
    "optimizer": {"name": "adam", "lr": 0.01},
}


def write_scenes(
    root: Path, *, rgb: bool, samples: tuple[int, int] = (13, 7), small: int = 2
) -> None:
    """Scenes of 40 to 60 by 70 to 99 pixels, a rectangle of a class on the ground, a line of void
    about it; `small` tiny ones.
    """
    rng = np.random.RandomState(0)
    for folder in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / folder).mkdir(parents=True)
    for name, count in zip(("train", "val"), samples, strict=True):
        names = [f"{name}_{i:02}" for i in range(count)]
        (root / "ImageSets/Segmentation" / f"{name}.txt").write_text("\n".join(names) + "\n")
        for i, scene in enumerate(names):
            height, width = (
                (20, 30) if i < small else (int(rng.randint(40, 60)), int(rng.randint(70, 99)))
            )
            mask = np.zeros((height, width), np.uint8)
            top, left = rng.randint(0, height // 2), rng.randint(0, width // 2)
            mask[top : top + height // 2 + 2, left : left + width // 2 + 2] = 255
            mask[top + 1 : top + height // 2, left + 1 : left + width // 2] = 1 + i % 2
            picture = PAINTS[np.where(mask == 255, 0, mask)] + rng.randint(
                -20, 20, (height, width, 3)
            )
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(
                root / "JPEGImages" / f"{scene}.jpg", quality=95
            )
            write_mask(root / "SegmentationClass" / f"{scene}.png", mask, rgb=rgb)


def write_mask(path: Path, mask: np.ndarray, *, rgb: bool) -> None:
    if rgb:
        Image.fromarray(masks.colour_map()[mask]).save(path)
        return
    image = Image.fromarray(mask)
    image.putpalette(masks.colour_map().tobytes())
    assert image.mode == "P"
    image.save(path)


def camvid_in_colours(raw: Path, folder: Path) -> Path:
    """CamVid's scenes below `raw` once more in `folder`, their palette masks in VOC's colours."""
    there, here = (root / "VOCdevkit" / "VOC2012" for root in (raw, folder))
    (here / "SegmentationClass").mkdir(parents=True)
    for name in ("ImageSets", "JPEGImages"):
        (here / name).symlink_to(there / name)
    for path in sorted((there / "SegmentationClass").iterdir()):
        write_mask(here / "SegmentationClass" / path.name, np.asarray(Image.open(path)), rgb=True)
    return folder


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("voc")
    write_scenes(folder / "scenes", rgb=False)
    return prepare(ranks.config(**SETTINGS).train.data, folder, folder)


def completed(folder: Path, prepared: dict[str, Any], world_size: int = 1, **train: Any) -> RunDir:
    return ranks.completed(folder, prepared, world_size, **{**SETTINGS, **train})


def test_the_colours_are_vocs() -> None:
    found = masks.colour_map()
    known = {
        0: [0, 0, 0],
        1: [128, 0, 0],
        2: [0, 128, 0],
        3: [128, 128, 0],
        4: [0, 0, 128],
        15: [192, 128, 128],
        20: [0, 64, 128],
        255: [224, 224, 192],
    }
    assert {i: found[i].tolist() for i in known} == known and len(np.unique(found, axis=0)) == 256


def test_masks_in_colours_are_the_same_masks(tmp_path: Path, prepared: dict[str, Any]) -> None:
    write_scenes(tmp_path / "scenes", rgb=True)
    made = prepare(ranks.config(**SETTINGS).train.data, tmp_path, tmp_path)
    assert Path(made["path"]).name != Path(prepared["path"]).name  # other files
    # the same bytes of them, so that all that follows is equal
    assert made["sha256"] == prepared["sha256"]
    assert made["samples"] == {"train": 11, "test": 5} and len(made["skipped"]) == 4
    assert made["skipped"][0] == {
        "name": "train_00",
        "reason": "20x30 pixels are smaller than the crop, 32x64",
    }


def test_a_picture_and_its_mask_are_cut_out_alike(tmp_path: Path, prepared: dict[str, Any]) -> None:
    """Each pixel's paint tells its class: a mask that were cut out elsewhere would not fit it."""
    config = ranks.config(**SETTINGS).train
    data = load(ranks.make_run(tmp_path, ranks.config(**SETTINGS), prepared))
    batches: Batches = Loader(
        data,
        config.data,
        workers=0,
        epochs=9,
        sampling=Sampling(3, 4, 4, rank=0, world_size=1),
        device=torch.device("cpu"),
    )
    places = set()
    for step in range(0, 9 * batches.steps_per_epoch):
        (batch,) = batches.at(step)
        assert (
            batch.images.shape[1:] == (3, 32, 64)
            and batch.labels.shape[1:] == (32, 64)
            and batch.labels.dtype == torch.uint8
        )
        pictures = batches.for_the_eye(batch.images).permute(0, 2, 3, 1)
        nearest = (
            (pictures[..., None, :].float() - torch.from_numpy(PAINTS)).square().sum(-1).argmin(-1)
        )
        known = batch.labels != masks.VOID
        assert (nearest == batch.labels)[known].float().mean() > 0.97  # a JPEG's edges
        places |= {tuple(m.float().mean(0).nonzero()[:1].flatten().tolist()) for m in batch.labels}
    assert len(places) > 10, "the crops are at random places"


def test_the_loss_and_the_share_of_pixels_leave_the_void_out() -> None:
    config = ranks.config(**SETTINGS).train
    outputs, labels = torch.randn(3, 3, 4, 5), torch.randint(0, 3, (3, 4, 5), dtype=torch.uint8)
    labels[0, :2] = labels[2] = masks.VOID  # half of the first, all of the last
    losses = tasks.mask_loss(outputs, labels, config, reduction="none")
    for i in (0, 1):
        known = labels[i] != masks.VOID
        expected = torch.nn.functional.cross_entropy(
            outputs[i][:, known].T, labels[i][known].long()
        )
        torch.testing.assert_close(losses[i], expected)
    assert losses[2] == 0 and tasks.mask_loss(outputs, labels, config) == losses.sum()
    right = sum(
        float((outputs[i].argmax(0) == labels[i])[labels[i] != 255].float().mean()) for i in (0, 1)
    )
    assert float(tasks.right_pixels(outputs, labels)) == pytest.approx(right)


def test_counts_are_those_of_a_loop_over_pixels() -> None:
    torch.manual_seed(0)
    labels = torch.randint(0, 3, (5, 4, 6), dtype=torch.uint8)  # class 3 is in no mask
    labels[torch.rand(labels.shape) < 0.2] = masks.VOID
    outputs = torch.randn(5, 4, 4, 6)
    tally = MaskTally(4, 5, (4, 6), torch.device("cpu"))
    for start in (0, 3):
        tally.add(outputs[start : start + 3], labels[start : start + 3], start)
    assert tally.shown == [0, 1, 2, 3, 4] and torch.equal(
        tally.predicted, outputs.argmax(1).to(torch.uint8)
    )
    assert MaskTally(4, 50, (4, 6), torch.device("cpu")).shown == [0, 8, 16, 25, 33, 41]
    expected = torch.zeros(4, 4, dtype=torch.int64)
    for truth, guess in zip(
        labels.flatten().tolist(), outputs.argmax(1).flatten().tolist(), strict=True
    ):
        if truth != masks.VOID:
            expected[truth, guess] += 1
    assert torch.equal(tally.confusion.view(4, 4), expected)
    for c, found in enumerate(iou(expected)):
        both = int(expected[c, c])
        either = int(expected[c].sum() + expected[:, c].sum()) - both
        assert found == (both / either if c < 3 else None)


def test_the_upsampling_begins_as_a_bilinear_one() -> None:
    torch.manual_seed(0)
    built = models.build(ranks.config(**SETTINGS).train.model, 3, 3, (64, 96))
    coarse = torch.randn(1, 3, 4, 6)
    smooth = torch.nn.functional.interpolate(
        coarse, scale_factor=32, mode="bilinear", align_corners=False
    )
    found = built.upsample(coarse)
    assert found.shape == (1, 3, 128, 192)
    # but edges
    torch.testing.assert_close(
        found[..., 16:-16, 16:-16], smooth[..., 16:-16, 16:-16], rtol=1e-4, atol=1e-5
    )
    assert bilinear(2, 4)[0, 1].count_nonzero() == 0


def test_resnet_18_has_torchvisions_names() -> None:
    built = models.build(
        ranks.config(**{**SETTINGS, "model": {"name": "fcn"}}).train.model, 21, 3, (320, 480)
    )
    theirs = pytest.importorskip("torchvision").models.resnet18().state_dict()
    found = {
        name: v.shape
        for name, v in built.state_dict().items()
        if not name.startswith(("head.", "upsample."))
    }
    assert found == {name: v.shape for name, v in theirs.items() if not name.startswith("fc.")}
    assert built(torch.zeros(1, 3, 64, 96)).shape == (1, 21, 64, 96)


@pytest.mark.long
def test_the_weights_of_a_resnets_run_but_for_new_last_layers(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    pictures = {"name": "synthetic", "samples": 8, "size": 32}
    resnet = {
        "data": pictures,
        "model": {"name": "torchvision/resnet18"},
        "epochs": 1,
        "global_batch_size": 8,
    }
    config = ranks.config("resnet-00000000", **resnet)
    before = ranks.make_run(tmp_path, config, prepare(config.train.data, tmp_path, tmp_path))
    assert ranks.train(before, "local-1", 1) == 0, ranks.logs(before)
    begin: dict[str, Any] = {
        "model": {"name": "fcn"},
        "weights": {"run": before.run_id},
        "init": {"name": "normal", "std": 0.5},
        "epochs": 1,
        "freeze": ["*", "!head.*", "!upsample.*"],
        "freeze_batch_norm": True,
        "optimizer": {"name": "sgd", "lr": 1e-30},  # too little to move anything but a zero
    }
    after = completed(tmp_path, prepared, **begin)
    given, found = (files.find(run, "latest")[0].weights for run in (before, after))
    # as before it is queued
    pretrained.check(ranks.config(**{**SETTINGS, **begin}).train, len(CLASSES), given)
    features = [name for name in given if not name.startswith("fc.")]
    assert set(found) - set(features) == {
        "head.weight",
        "head.bias",
        "upsample.weight",
        "upsample.bias",
    }
    # bit for bit, statistics too
    assert all(torch.equal(found[name], given[name]) for name in features)
    assert float(found["head.weight"].std()) == pytest.approx(0.5, rel=0.1)
    torch.testing.assert_close(found["upsample.weight"], bilinear(3, 64), rtol=0, atol=1e-20)
    assert (
        "but for a new head and upsample; the model has no use for fc.bias, fc.weight"
        in ranks.logs(after)
    )


def test_a_run_learns_and_leaves_its_figures(tmp_path: Path, prepared: dict[str, Any]) -> None:
    data = {**DATA, "validation": 0.2}
    run = completed(
        tmp_path, prepared, epochs=25, evaluate_every_epochs=5, data=data, best_metric="mean_iou"
    )
    found, last = ranks.outcome(run, "local-1"), read_jsonl(run.metrics)[-1]
    assert found.extra["skipped_pictures"] == 4 and found.extra["best"]["metric"] == "mean_iou"
    assert (found.test_accuracy, found.extra["test_mean_iou"]) == (
        last["accuracy"],
        last["mean_iou"],
    )
    kept = read_json(run.evaluation("test"))
    confusion = np.array(kept["confusion"])
    commonest = confusion.sum(1).max() / confusion.sum()
    # of always predicting the commonest
    assert last["mean_iou"] > 2 * commonest / 3 and last["accuracy"] > commonest
    assert last["accuracy"] == np.trace(confusion) / confusion.sum()
    assert kept["iou"] == iou(torch.from_numpy(confusion))
    looked_at = read_json(run.masks)
    assert [c["name"] for c in looked_at["classes"]] == CLASSES and len(looked_at["scenes"]) == 5
    _, truth = load(run).splits["test"].read(0, 5)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(looked_at["scenes"][1]["truth"]))))
    assert np.array_equal(shown, masks.colour_map()[truth[1]])
    assert len(read_json(run.samples)["pictures"]) == 4 and not run.misclassified.exists()


def test_evaluations_do_not_depend_on_the_ranks(tmp_path: Path, prepared: dict[str, Any]) -> None:
    parity = {"epochs": 1, "parity": "bitwise", "parity_shards": 2}
    one, two = (completed(tmp_path / str(n), prepared, n, **parity) for n in (1, 2))
    assert one.metrics.read_bytes() == two.metrics.read_bytes()
    for name in ("evaluation-test.json", "masks.json"):
        assert (one.figures / name).read_bytes() == (two.figures / name).read_bytes()


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.long
def test_a_stopped_run_continues_to_the_same_bits(
    tmp_path: Path, prepared: dict[str, Any], world_size: int
) -> None:
    whole = completed(tmp_path / "whole", prepared, world_size)
    run = ranks.make_run(tmp_path / "stopped", ranks.config(ranks=world_size, **SETTINGS), prepared)
    for attempt, stop in (("local-1", 2), ("local-2", 3), ("local-3", None)):  # 3 steps an epoch
        ranks.set_execution(run, stop_after_step=stop)
        assert ranks.train(run, attempt, world_size) == 0, ranks.logs(run)
    expected, found = ranks.outcome(whole, "local-1"), ranks.outcome(run, "local-3")
    assert found.weights_sha256 == expected.weights_sha256 and found.extra == expected.extra
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_another_set_does_not_pass_for_voc2012(tmp_path: Path) -> None:
    write_scenes(tmp_path / "VOCdevkit/VOC2012", rgb=False)
    vocs = ranks.config(**{**SETTINGS, "data": {"name": "voc", "crop": [32, 64]}}).train.data
    with pytest.raises(DataError) as error:
        prepare(vocs, tmp_path, tmp_path / "cache")
    assert (
        "not VOC2012 as it was published: train.txt names 13 pictures, VOC2012's 1464; val.txt"
        " names 7" in str(error.value)
    )
    assert "Name its classes by train.data.classes where it is another set" in str(error.value)
    assert (
        len(prepare(vocs, tmp_path, tmp_path / "cache", allow_unverified=True)["unverified"]) == 2
    )


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    config = ranks.config(**SETTINGS).train.data
    with pytest.raises(DataError, match=r"voc: there is no folder .*scenes"):
        prepare(config, tmp_path, tmp_path)
    write_scenes(tmp_path / "scenes", rgb=False)
    folder = tmp_path / "scenes" / "SegmentationClass"
    write_mask(folder / "train_03.png", np.full((20, 30), 7, np.uint8), rgb=False)
    write_mask(folder / "train_04.png", np.zeros((20, 30), np.uint8), rgb=True)
    Image.fromarray(np.full((9, 9, 3), 77, np.uint8)).save(folder / "val_02.png")
    with pytest.raises(DataError) as caught:
        prepare(config, tmp_path, tmp_path)
    assert "3 picture(s) or mask(s) of" in str(caught.value)
    for said in (
        "train_03: class 7 in a mask; known are 0 to 2, and 255",
        "train_04: the picture has",
        "its mask 20x30",
        "val_02: colour [77, 77, 77] at row 0, column 0 is none of Pascal VOC's",
    ):
        assert said in str(caught.value)
    (folder / "val_02.png").unlink()
    with pytest.raises(
        DataError, match=r"1 file\(s\) that the lists name are missing:\n .*val_02.png"
    ):
        prepare(config, tmp_path, tmp_path)


@pytest.mark.skipif(
    not os.environ.get("BATCHYARD_DATA") and not os.environ.get("CI"),
    reason="needs VOCdevkit below $BATCHYARD_DATA",
)
@pytest.mark.long
def test_the_stand_in_with_masks_of_both_kinds(tmp_path: Path) -> None:
    """CamVid's scenes: palette masks, and the same masks in VOC's colours, prepare to the same
    bytes.
    """
    raw = Path(os.environ["BATCHYARD_DATA"])
    config = ranks.config(**{**SETTINGS, "data": {"name": "voc", "crop": [320, 480]}}).train.data
    made = [
        prepare(config, place, tmp_path, allow_unverified=True)
        for place in (raw, camvid_in_colours(raw, tmp_path))
    ]
    assert len(made[0]["unverified"]) == 2  # both lists: they are not VOC2012's
    assert made[0]["sha256"] == made[1]["sha256"] and made[0]["path"] != made[1]["path"]
    assert made[0]["samples"] == {"train": 150, "test": 50} and not made[0]["skipped"]
