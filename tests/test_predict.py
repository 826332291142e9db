"""`batchyard predict`: what a run's model says of a picture's file is what its last evaluation said
of the same test picture.
"""

from __future__ import annotations

import base64
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests import ranks
from tests.cli import Shell
from tests.test_segmentation import SETTINGS, write_scenes
from trainer.checkpoints import files
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig
from trainer.datasets.prepare import prepare
from trainer.output.captions import Line, captioned, grid
from trainer.prepared.arrays import load
from trainer.prepared.listing import Listing
from trainer.tools import predict
from trainer.tools import trained as loading

PROJECT = Path(__file__).resolve().parents[1]
# width and height of the pictures in class folders
SIZES = [(31, 40), (40, 31), (23, 23), (64, 30)]


def trained(folder: Path, data_dir: Path, **train: Any) -> RunDir:
    """A completed run with its code, as submit leaves one."""
    config = ranks.config(**train)
    run = ranks.make_run(
        folder / "runs", config, prepare(config.train.data, data_dir, folder / "cache")
    )
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    run.code.symlink_to(PROJECT)
    write_json(run.plan, {"python": sys.executable})
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    folder = tmp_path_factory.mktemp("digits")
    return trained(folder, folder, model={"name": "mlp", "hidden": [16]}, epochs=1)


def mistakes(run: RunDir) -> dict[int, tuple[str, float]]:
    """Of the last evaluation, by the number of the test picture: the wrong class and its
    probability.
    """
    return {
        p["sample"]: (p["predicted"], p["probability"])
        for p in read_json(run.misclassified)["pictures"]
    }


def asked(run: RunDir, *argv: str, code: int = 0) -> dict[str, Any]:
    return json.loads(Shell(run.path.parent).run("predict", run.run_id, "--json", *argv, code=code))


def test_digits_are_what_the_evaluation_took_them_for(tmp_path: Path, digits: RunDir) -> None:
    wrong, split = mistakes(digits), load(digits).splits["test"]
    (tmp_path / "below").mkdir()
    for number in wrong:
        Image.fromarray(split.read(number, number + 1)[0][0, 0]).save(
            tmp_path / "below" / f"{number}.png"
        )
    told = asked(digits, str(tmp_path))
    assert (
        told["run_id"] == "t-00000000"
        and told["checkpoint"] == "step-15.local-1"
        and told["classes"] == list("0123456789")
    )
    assert len(told["pictures"]) == len(wrong) == 16
    for picture in told["pictures"]:
        predicted, probability = wrong[int(Path(picture["file"]).stem)]
        assert picture["top"][0]["class"] == predicted and picture["top"][0][
            "probability"
        ] == pytest.approx(probability, abs=1e-5)
        assert len({c["class"] for c in picture["top"]}) == 5
        assert [c["probability"] for c in picture["top"]] == sorted(
            (c["probability"] for c in picture["top"]), reverse=True
        )
        assert picture["labelled"] == str(
            digits.predicted / "below" / f"{Path(picture['file']).name}.predicted.png"
        )
        with Image.open(picture["labelled"]) as labelled:
            assert labelled.size[0] >= 160 and labelled.size[1] > 160
    printed = Shell(digits.path.parent).run(
        "predict", "t-00000000", "--out", str(tmp_path / "out"), str(tmp_path)
    )
    lines = printed.splitlines()
    assert lines[0] == "t-00000000 step-15.local-1, the last one, 10 classes"
    # nothing is written where pictures lie
    assert len(lines) == 17 and len(list((tmp_path / "below").iterdir())) == 16
    assert len(list((tmp_path / "out" / "below").iterdir())) == 16


def test_pictures_of_any_size_are_resized_and_cut_as_test_pictures(tmp_path: Path) -> None:
    rng = np.random.RandomState(0)
    for split in ("train", "val"):
        for label, name in enumerate(("ant", "bee")):
            place = tmp_path / "insects" / split / name
            place.mkdir(parents=True)
            for i in range(12):
                width, height = SIZES[i % len(SIZES)]
                # most cannot be told apart
                pixels = rng.randint(0, 256, (height, width, 3)) // (1 + label * (i % 3 == 0))
                Image.fromarray(pixels.astype(np.uint8)).save(place / f"{i:02}.png")
    data = {
        "name": "imagefolder",
        "folder": "insects",
        "size": 16,
        "resize": 20,
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
    }
    run = trained(
        tmp_path,
        tmp_path,
        data=data,
        model={"name": "mlp", "hidden": [8]},
        global_batch_size=5,
        epochs=3,
    )
    told = asked(run, "--out", str(tmp_path / "out"), str(tmp_path / "insects" / "val"))
    wrong, in_order = mistakes(run), sorted(told["pictures"], key=lambda picture: picture["file"])
    assert len(in_order) == 24 and 0 < len(wrong) < 24
    truth = [Path(picture["file"]).parent.name for picture in in_order]
    found = {i: p["top"][0] for i, p in enumerate(in_order) if p["top"][0]["class"] != truth[i]}
    assert {i: c["class"] for i, c in found.items()} == {i: name for i, (name, _) in wrong.items()}
    assert [c["probability"] for c in found.values()] == pytest.approx(
        [wrong[i][1] for i in found], abs=1e-5
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A segmentation, its pictures beside its runs, in scenes/."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder / "scenes", rgb=False)
    return trained(folder, folder, **SETTINGS)


def pictures_of(run: RunDir) -> list[Path]:
    """The test pictures of scenes: the first two are too small for the run."""
    return sorted((run.path.parents[1] / "scenes/JPEGImages").glob("val_*.jpg"))


def test_masks_are_those_of_the_evaluation(tmp_path: Path, scenes: RunDir) -> None:
    places = []
    for number, file in enumerate(pictures_of(scenes)[2:]):  # as an evaluation cuts them out
        with Image.open(file) as image:
            left, top = (image.width - 64) // 2, (image.height - 32) // 2
            places.append(str(tmp_path / f"{number}.png"))
            image.crop((left, top, left + 64, top + 32)).save(places[-1])
    told = asked(scenes, *places)
    shown = {
        s["sample"]: base64.b64decode(s["predicted"]) for s in read_json(scenes.masks)["scenes"]
    }
    assert len(shown) == 5
    for number, png in shown.items():
        picture = told["pictures"][number]
        with Image.open(picture["mask"]) as mask:
            assert mask.mode == "P" and picture["mask"].endswith(f"{number}.png.mask.png")
            assert np.array_equal(
                np.asarray(mask.convert("RGB")), np.asarray(Image.open(io.BytesIO(png)))
            )
            numbers, counts = np.unique(np.asarray(mask), return_counts=True)
        assert sum(c["share"] for c in picture["classes"]) == pytest.approx(1)
        assert {c["number"]: c["share"] for c in picture["classes"]} == dict(
            zip(numbers, counts / (32 * 64), strict=True)
        )


def test_of_a_segmentation_the_whole_picture_has_a_mask(tmp_path: Path, scenes: RunDir) -> None:
    told = asked(scenes, "--out", str(tmp_path / "out"), *map(str, pictures_of(scenes)))
    config = RunConfig.model_validate_json(scenes.config.read_text())
    record = read_json(scenes.data_record)
    found = loading.load(scenes, config, files.find(scenes, "latest")[0], "cpu")
    mean, std = (np.array(record[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    sizes = []
    for file, picture in zip(pictures_of(scenes), told["pictures"], strict=True):
        with Image.open(file) as image, Image.open(picture["mask"]) as mask:
            assert mask.size == image.size and sum(
                c["share"] for c in picture["classes"]
            ) == pytest.approx(1)
            pixels = np.asarray(image).transpose(2, 0, 1)
            _, height, width = pixels.shape
            padded = np.pad(pixels, ((0, 0), (0, -height % 32), (0, -width % 32)), mode="edge")
            with torch.no_grad():
                scores = found.model(torch.from_numpy((padded / 255 - mean) / std).float()[None])[0]
            own = scores[:, :height, :width].argmax(0).numpy()
            # scores that are nearly equal may change places
            assert (own == np.asarray(mask)).mean() > 0.999
            sizes.append(mask.size)
    assert sizes[:2] == [(30, 20), (30, 20)]  # smaller than what training cuts out


def test_the_best_weights_are_taken_where_there_are(tmp_path: Path, digits: RunDir) -> None:
    run = ranks.make_run(
        tmp_path, ranks.config(model={"name": "mlp", "hidden": [16]}), read_json(digits.data_record)
    )
    run.code.symlink_to(PROJECT)
    write_json(run.plan, {"python": sys.executable})
    run.checkpoints.mkdir()
    (run.checkpoints / "step-15.local-1").symlink_to(digits.checkpoints / "step-15.local-1")
    (run.checkpoints / "best").symlink_to("step-9.local-1")
    picture = tmp_path / "1.png"
    Image.new("L", (8, 8)).save(picture)
    shell = Shell(tmp_path)
    assert "the best checkpoint of t-00000000, step-9.local-1, is not whole" in shell.run(
        "predict", "t", str(picture), code=2
    )
    (run.checkpoints / "best").unlink()
    assert "step-15.local-1" in shell.run("predict", "t", str(picture))


@pytest.mark.long
def test_the_best_weights_are_not_the_last_ones(tmp_path: Path) -> None:
    """The rate grows until rate x decay is above two, where the weights grow with each step: the
    last evaluation is the worst.
    """
    data = {"name": "digits", "validation": 0.2}
    optimizer, schedule = (
        {"name": "sgd", "lr": 3.0, "weight_decay": 1.0},
        {
            "name": "constant",
            "warmup_epochs": 4,
        },
    )
    run = trained(
        tmp_path,
        tmp_path,
        data=data,
        model={"name": "mlp", "hidden": []},
        optimizer=optimizer,
        schedule=schedule,
        best_metric="loss",
        epochs=4,
    )
    best, latest = (os.readlink(run.checkpoints / name) for name in ("best", "latest"))
    assert best != latest == "step-48.local-1"
    split, place = load(run, 0.2).splits["test"], tmp_path / "1.png"
    pixels = split.read(0, 1)[0]
    Image.fromarray(pixels[0, 0]).save(place)
    told, weights = asked(run, str(place)), files.load(run.checkpoints / best).weights
    matrix, bias = (
        weights[name].numpy().astype(np.float64)
        for name in sorted(weights, key=lambda n: n.endswith("bias"))
    )
    record = read_json(run.data_record)
    scores = matrix @ ((pixels.reshape(-1) / 255 - record["mean"][0]) / record["std"][0]) + bias
    by_hand = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert told["checkpoint"] == best and told["which"] == "best"
    found = {c["class"]: c["probability"] for c in told["pictures"][0]["top"]}
    assert found == {str(i): pytest.approx(by_hand[i], abs=1e-5) for i in np.argsort(-by_hand)[:5]}
    (run.checkpoints / "best").unlink()
    last = asked(run, str(place))
    assert (last["checkpoint"], last["which"]) == (latest, "latest")
    assert last["pictures"][0]["top"][0] != told["pictures"][0]["top"][0]
    (run.checkpoints / "best").symlink_to(best)
    shell, said = (
        Shell(run.path.parent),
        f"t-00000000 {best}, the best one on the validation split, 10 classes\n",
    )
    assert shell.run("predict", "t", str(place)).startswith(said)
    assert f"from {best}," in shell.run("export", "t", "--best") and f"from {latest}," in shell.run(
        "export", "t"
    )


@pytest.mark.long
def test_what_cannot_be_predicted_is_told_at_once(tmp_path: Path, digits: RunDir) -> None:
    (tmp_path / "empty").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / folder / "1.png")
    text = tmp_path / "notes.png"
    text.write_text("no picture")
    shell = Shell(digits.path.parent)
    told = shell.run(
        "predict", "t", *(str(tmp_path / name) for name in ("none.png", "empty", "a")), code=2
    )
    assert (
        f"there is no {tmp_path / 'none.png'}" in told
        and f"{tmp_path / 'empty'} holds no picture" in told
    )
    told = shell.run(
        "predict",
        "t",
        "--out",
        str(tmp_path / "o"),
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        code=2,
    )
    assert (
        f"{tmp_path / 'a/1.png'} and {tmp_path / 'b/1.png'} would both be"
        f" {tmp_path / 'o/1.png'}.predicted.png" in told
    )
    told = shell.run("predict", "t", str(text), str(tmp_path / "a"), code=1)
    assert (
        f"{text}: no picture by its content" in told
        and str(digits.predicted / "1.png.predicted.png") in told
    )
    told = shell.run("predict", "t", "--out", str(text), str(tmp_path / "a"), code=2)
    assert (
        "1.png.predicted.png cannot be written (" in told and "--out names another folder" in told
    )
    assert "Missing argument" in shell.run("predict", "t", code=2)


def test_a_run_of_older_code_is_told(tmp_path: Path, digits: RunDir) -> None:
    run = ranks.make_run(tmp_path, ranks.config(), read_json(digits.data_record))
    (run.code / "trainer").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    told = Shell(tmp_path).run("predict", "t", str(tmp_path / "1.png"), code=2)
    assert (
        told == f"batchyard: the code that t-00000000 is frozen with ({run.code}) has no"
        " trainer.tools.predict: it is older, or gone\n"
    )


def test_a_table_takes_no_pictures(tmp_path: Path) -> None:
    data = {"name": "linear", "features": 2, "w": 1.0, "train_samples": 8, "test_samples": 4}
    optimizer = {"name": "sgd", "lr": 0.01}
    run = trained(
        tmp_path,
        tmp_path,
        data=data,
        model={"name": "mlp", "hidden": []},
        optimizer=optimizer,
        global_batch_size=4,
    )
    picture = tmp_path / "1.png"
    Image.new("L", (8, 8)).save(picture)
    told = Shell(run.path.parent).run("predict", "t", str(picture), code=2)
    assert (
        told
        == "batchyard: t-00000000 learns from the rows of a table (linear), not from pictures\n"
    )


def test_a_captioned_picture_shows_the_picture_and_its_lines() -> None:
    small = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 3)
    page = captioned(small, [Line("seven 98.1%"), Line("one", (200, 0, 0))])
    pixels = np.asarray(page)
    assert np.array_equal(pixels[6 : 6 + 160 : 20, 6 : 6 + 160 : 20, 0], np.asarray(small))
    below = pixels[166:]
    # letters, and the square of a colour
    assert (below < 100).all(-1).any() and (below == (200, 0, 0)).all(-1).sum() > 50
    assert captioned(Image.new("RGB", (2000, 100)), []).size == (640 + 12, 32 + 12)
    assert grid([page] * 5, 2).size == (2 * page.width, 3 * page.height)


def test_a_picture_named_twice_is_one(tmp_path: Path) -> None:
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    assert predict.find(
        [tmp_path / "1.png", tmp_path, tmp_path / "1.png"], tmp_path / "out", Listing()
    ) == [predict.Asked(tmp_path / "1.png", tmp_path / "out" / "1.png")]
