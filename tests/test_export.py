"""`batchyard export --format`: a program predicts the same in a process that has no Batchyard, by
what stands in the file alone.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import nn

from tests.cli import Shell
from tests.test_predict import PROJECT, asked, trained
from tests.test_segmentation import SETTINGS, write_scenes
from trainer.checkpoints.files import find
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig
from trainer.tools import export, program
from trainer.tools import trained as loading

# Knows only the file, Pillow and its runtime. An editable install of Batchyard is looked past.
PLAIN = """
import importlib.util, json, sys
sys.path[:] = [p for p in sys.path if p not in ("", PROJECT)]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in str(f).lower()]
assert importlib.util.find_spec("trainer") is None and importlib.util.find_spec("launch") is None
import numpy as np
from PIL import Image

path, *files = sys.argv[1:]
if path.endswith(".onnx"):
    import onnxruntime
    session = onnxruntime.InferenceSession(path)
    told = json.loads(session.get_modelmeta().custom_metadata_map["batchyard"])
    run = lambda pictures: session.run([told["output"]["name"]], {told["input"]["name"]: pictures})[0]
else:
    import torch
    inside = {"batchyard": ""}
    module = torch.export.load(path, extra_files=inside).module()
    told = json.loads(inside["batchyard"])
    run = lambda pictures: module(torch.from_numpy(pictures)).numpy(force=True)

def picture(file):
    how = told["picture"]
    image = Image.open(file).convert(how["mode"])
    (width, height), resize = image.size, how["resize"]
    if resize and "shorter_side" in resize:
        side = resize["shorter_side"]
        width, height = (side, int(side * height / width)) if width <= height else (int(side * width / height), side)
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    bottom, right = how["centre_crop"]
    left, top = (width - right) // 2 if not resize else round((width - right) / 2), (height - bottom) // 2 if not resize \
        else round((height - bottom) / 2)
    pixels = np.asarray(image.crop((left, top, left + right, top + bottom)))
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))

if told["task"] == "regression":
    print(json.dumps({"told": told, "values": run(np.load(files[0])).tolist()}))
    sys.exit()
scores = run(np.stack([picture(file) for file in files]))
parts = np.exp(scores - scores.max(1, keepdims=True))
parts /= parts.sum(1, keepdims=True)
found = [{told["classes"][i]: float(p[i]) for i in range(len(p))} for p in parts] if parts.ndim == 2 else None
print(json.dumps({"told": told, "found": found, "masks": scores.argmax(1).tolist() if parts.ndim == 4 else None}))
"""


def plain(file: Path, *pictures: str) -> dict[str, Any]:
    """What a process says that has no Batchyard."""
    code = PLAIN.replace("PROJECT", repr(str(PROJECT)))
    argv = [sys.executable, "-P", "-c", code, str(file), *pictures]
    done = subprocess.run(argv, cwd=file.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def exported(run: RunDir, form: str, out: Path) -> str:
    return Shell(run.path.parent).run("export", run.run_id, "--format", form, "--out", str(out))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A ResNet with BatchNorm on pictures of several sizes, averaged weights."""
    root, rng = tmp_path_factory.mktemp("folders"), np.random.RandomState(0)
    for place in ("train/ant", "train/bee", "train/wasp", "val/ant", "val/bee", "val/wasp"):
        (root / "insects" / place).mkdir(parents=True)
        for i in range(5):
            pixels = rng.randint(0, 256, (24 + 5 * i, 40 - 3 * i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "insects" / place / f"{i}.png")
    data = {"name": "imagefolder", "folder": "insects", "size": 16, "resize": 20}
    return trained(root, root, data=data, epochs=1, global_batch_size=5, ema_decay=0.9)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory, folders: RunDir) -> list[dict[str, Any]]:
    """What `predict` says of each of its test pictures."""
    out = tmp_path_factory.mktemp("labelled")
    place = folders.path.parents[1] / "insects" / "val"
    return asked(folders, "--out", str(out), str(place))["pictures"]


@pytest.mark.parametrize(("form", "ending"), [("onnx", "onnx"), ("torch-export", "pt2")])
def test_an_exported_model_predicts_the_same_without_batchyard(
    folders: RunDir, predicted: list[dict[str, Any]], form: str, ending: str
) -> None:
    printed = Shell(folders.path.parent).run("export", "t-00000000", "--format", form)
    file = folders.path / f"latest.{ending}"
    assert (
        f"{file}: {form}, at most " in printed and "from step-3.local-1, weights_sha256 " in printed
    )
    there = plain(file, *(picture["file"] for picture in predicted))
    assert len(there["found"]) == 15 and there["told"]["classes"] == ["ant", "bee", "wasp"]
    assert there["told"]["run_id"] == "t-00000000" and there["told"]["task"] == "classification"
    for picture, found in zip(predicted, there["found"], strict=True):
        assert found == pytest.approx(
            {c["class"]: c["probability"] for c in picture["top"]}, abs=1e-5
        )
    assert not list(folders.path.glob(".*.tmp*"))


@pytest.mark.long
def test_a_model_that_resizes_its_pictures_does_so_in_its_program(tmp_path: Path) -> None:
    run = trained(
        tmp_path,
        tmp_path,
        data={"name": "digits", "resize": 12},
        model={"name": "mlp", "hidden": [8]},
        epochs=1,
    )
    pictures = []
    for i in range(3):
        pictures.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(np.random.RandomState(i).randint(0, 256, (8, 8), dtype=np.uint8)).save(
            pictures[-1]
        )
    told = asked(run, *pictures)
    exported(run, "onnx", tmp_path / "digits.onnx")
    there = plain(tmp_path / "digits.onnx", *pictures)
    assert there["told"]["normalise"]["resize"] == [12, 12] and there["told"]["picture"][
        "shape"
    ] == [1, 8, 8]
    for picture, found in zip(told["pictures"], there["found"], strict=True):
        assert {c["class"]: pytest.approx(found[c["class"]], abs=1e-5) for c in picture["top"]} == {
            c["class"]: c["probability"] for c in picture["top"]
        }


@pytest.mark.long
def test_a_segmentation_gives_the_same_masks(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", rgb=False)
    run = trained(tmp_path, tmp_path, **SETTINGS)
    pictures = []
    for i in (3, 5):  # of the one size that the program takes
        pictures.append(str(tmp_path / f"{i}.png"))
        Image.open(tmp_path / "scenes/JPEGImages" / f"val_{i:02}.jpg").crop((2, 3, 66, 35)).save(
            pictures[-1]
        )
    told = asked(run, "--out", str(tmp_path / "out"), *pictures)
    exported(run, "onnx", tmp_path / "masks.onnx")
    there = plain(tmp_path / "masks.onnx", *pictures)
    for picture, mask in zip(told["pictures"], there["masks"], strict=True):
        with Image.open(picture["mask"]) as own:
            # scores that are nearly equal may change places
            assert (np.asarray(own) == np.array(mask)).mean() > 0.999


def test_safetensors_tell_classes_and_preprocessing_too(tmp_path: Path, folders: RunDir) -> None:
    exported(folders, "safetensors", tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        told = json.loads(file.metadata()["batchyard"])
    assert told["classes"] == ["ant", "bee", "wasp"] and told["picture"]["resize"] == {
        "shorter_side": 20
    }
    assert told["picture"]["centre_crop"] == [16, 16] and len(told["normalise"]["mean"]) == 3


class Random(nn.Module):
    """A model whose program gives other scores."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] + torch.rand(x.shape[0], 3)


class OfOneSize(nn.Module):
    """A model that looks at how many pictures there are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :3] if x.shape[0] == 2 else x.flatten(1)[:, 3:6]


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Random(), "the torch-export program of resnet gives other scores than the model, "),
        (OfOneSize(), "resnet does not become a program of the format torch-export: "),
    ],
)
def test_a_program_that_is_not_the_model_is_not_written(
    folders: RunDir, tmp_path: Path, model: nn.Module, message: str
) -> None:
    config = RunConfig.model_validate_json(folders.config.read_text())
    found = loading.load(folders, config, find(folders, "latest")[0], "cpu")
    other = loading.Trained(**{**vars(found), "model": model})
    with pytest.raises(program.CannotExport, match=message):
        program.write(program.of_pictures(other), tmp_path / "x.pt2", "torch-export", {})


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A linear layer on the rows of a table."""
    folder = tmp_path_factory.mktemp("table")
    data = {
        "name": "linear",
        "features": 2,
        "w": [1.0, -2.0],
        "b": 3.0,
        "train_samples": 8,
        "test_samples": 4,
    }
    optimizer = {"name": "sgd", "lr": 0.01}
    return trained(
        folder,
        folder,
        data=data,
        model={"name": "mlp", "hidden": []},
        optimizer=optimizer,
        global_batch_size=4,
    )


@pytest.fixture
def own_table(tmp_path: Path, table: RunDir) -> RunDir:
    """A copy of it, to be changed."""
    return RunDir(shutil.copytree(table.path, tmp_path / "runs" / table.run_id, symlinks=True))


@pytest.mark.parametrize(("form", "ending"), [("onnx", "onnx"), ("torch-export", "pt2")])
def test_the_model_of_a_table_takes_rows(
    tmp_path: Path, table: RunDir, form: str, ending: str
) -> None:
    run = table
    exported(run, form, tmp_path / f"line.{ending}")
    rows = np.random.RandomState(0).randn(5, 2).astype(np.float32)
    np.save(tmp_path / "rows.npy", rows)
    there = plain(tmp_path / f"line.{ending}", str(tmp_path / "rows.npy"))
    weights = find(run, "latest")[0].weights
    (matrix,), (bias,) = (
        [w.numpy() for name, w in weights.items() if name.endswith(end)]
        for end in ("weight", "bias")
    )
    np.testing.assert_allclose(there["values"], rows @ matrix.T + bias, rtol=1e-5)
    assert there["told"]["row"]["features"] == 2 and there["told"]["task"] == "regression"


def test_without_the_extra_it_is_told_what_to_install(tmp_path: Path, own_table: RunDir) -> None:
    """In a Python that has all packages of this one, but those that ONNX needs."""
    run = own_table
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    for folder in (Path(p) for p in sys.path if p.endswith("-packages")):
        for entry in folder.iterdir():
            if (
                not entry.name.startswith("onnx")
                and entry.suffix != ".pth"
                and not (packages / entry.name).exists()
            ):
                (packages / entry.name).symlink_to(entry)
    write_json(run.plan, {"python": str(tmp_path / "venv/bin/python")})
    shell = Shell(run.path.parent)
    assert (
        shell.run("export", "t", "--format", "onnx", code=2)
        == "batchyard: ONNX needs onnx, onnxscript, onnxruntime: install the extra 'onnx' for the"
        " run's Python, or take --format torch-export\n"
    )
    assert "torch-export, at most " in shell.run("export", "t", "--format", "torch-export")
    assert not list(run.path.glob("*.onnx")) and not list(run.path.glob(".*.tmp*"))


def test_what_cannot_be_exported_is_told(own_table: RunDir) -> None:
    run = own_table
    shell = Shell(run.path.parent)
    assert "2 tensors" in shell.run("export", "t")
    assert "Invalid value for '--format'" in shell.run("export", "t", "--format", "onxx", code=2)
    write_json(run.plan, {"python": "/no/such/python"})
    assert "/no/such/python has no safetensors" in shell.run(
        "export", "t", "--format", "onnx", code=2
    )


def test_a_file_is_written_under_the_same_name_each_time(tmp_path: Path) -> None:
    names = []
    for i in range(2):
        with export.appearing(tmp_path / f"{i}.pt2") as path:
            names.append(path.name)  # torch.export writes it into the file
            path.write_text("program")
    assert names == ["model.pt2"] * 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.pt2", "1.pt2"]


def test_a_model_whose_outputs_are_not_finite_is_not_compared(tmp_path: Path) -> None:
    broken = nn.Linear(2, 2)
    nn.init.constant_(broken.weight, float("inf"))
    made = program.of_rows(broken, "mlp", 2)._replace(module=nn.Sequential(broken))
    with pytest.raises(program.CannotExport, match="gives values of noise that are not finite"):
        program.write(made, tmp_path / "m.pt2", "torch-export", {})
