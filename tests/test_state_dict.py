"""A file of weights becomes names and tensors, or one sentence; nothing in it is run."""

from __future__ import annotations

import argparse
import gzip
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor

from trainer.prepared.errors import DataError
from trainer.weights import load, state_dict

STATE = {
    "stem.weight": torch.arange(6.0).reshape(2, 3),
    "stem.bias": torch.ones(2),
    "fc.weight": torch.zeros(4, 2),
}
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = "<!DOCTYPE html>\n<html><head><title>404</title></head></html>\n"


def as_torch(content: Any, **how: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **how)
    return file.getvalue()


def as_zip(name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, b"x")
    return file.getvalue()


def under(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


def read(folder: Path, content: bytes, name: str = "w.pt") -> dict[str, Tensor]:
    path = folder / name
    path.write_bytes(content)
    return state_dict.read(path)


CHECKPOINTS: dict[str, Any] = {
    "alone": STATE,
    "in a checkpoint of a tutorial": {
        "epoch": 3,
        "arch": "resnet",
        "state_dict": STATE,
        "optimizer": {"state": {}},
    },
    "model": {"model": STATE, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
    "model_state_dict": {
        "model_state_dict": STATE,
        "optimizer_state_dict": {"state": {}, "param_groups": []},
    },
    "nested": {"model": {"state_dict": STATE, "width": 3}},
    "under another name": {"generator": STATE, "step": 7},
    "DDP": under("module."),
    "torch.compile": {"model": under("_orig_mod.")},
    "torch.compile in DDP": under("module._orig_mod."),
    "DDP in torch.compile": under("_orig_mod.module."),
    "a compiled layer": {
        name.replace("stem.", "stem._orig_mod."): tensor for name, tensor in STATE.items()
    },
}


@pytest.mark.parametrize("kind", list(CHECKPOINTS))
def test_a_state_dict_wherever_it_is(tmp_path: Path, kind: str) -> None:
    found = read(tmp_path, as_torch(CHECKPOINTS[kind]))
    assert list(found) == list(STATE) and all(
        torch.equal(found[name], tensor) for name, tensor in STATE.items()
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("w.pt", save(STATE)),
        ("w.safetensors", as_torch(STATE)),
        ("w.safetensors", save(STATE)),
        ("w", as_torch(STATE)),
        ("w.pth", as_torch(STATE, _use_new_zipfile_serialization=False)),
    ],
)
def test_either_format_under_any_name(tmp_path: Path, name: str, content: bytes) -> None:
    found = read(tmp_path, content, name)
    assert found.keys() == STATE.keys() and all(
        torch.equal(found[name], tensor) for name, tensor in STATE.items()
    )


SPOILT: list[tuple[Callable[[], bytes], str]] = [
    (lambda: b"", "is empty"),
    (lambda: save(STATE)[:-4], "cannot be read by safetensors: it is incomplete, or was changed"),
    (lambda: save(STATE)[:40], "is incomplete: its header alone has "),
    (
        lambda: save(STATE)[:4],
        "is neither a file of torch.save nor one of safetensors: it begins with b'",
    ),
    (lambda: save({}), "has no tensors"),
    (
        lambda: as_torch(STATE)[:-50],
        "is incomplete: it begins as torch.save writes a file, and its end is missing",
    ),
    (
        lambda: as_torch(STATE)[:99],
        "is incomplete: it begins as torch.save writes a file, and its end is missing",
    ),
    (
        lambda: as_torch(STATE, _use_new_zipfile_serialization=False)[:-9],
        "is incomplete or corrupt: torch.save's format is",
    ),
    (
        lambda: PAGE.encode(),
        "is a web page: the download brought its server's answer instead of the file",
    ),
    (
        lambda: LFS.encode(),
        "is a Git LFS pointer, not the file itself: `git lfs pull` fetches that",
    ),
    (lambda: gzip.compress(as_torch(STATE)), "is packed by gzip: unpack it first"),
    (lambda: as_zip("a.npy"), "is a zip archive that torch.save did not write"),
    (lambda: as_zip("m/constants.pkl"), "is a TorchScript program: save its state dict instead"),
    (
        lambda: b"weights",
        "is neither a file of torch.save nor one of safetensors: it begins with b'weights'",
    ),
    (
        lambda: as_torch({0: torch.zeros(2)}),
        "has tensors under 0, which is no name: expected those of a model",
    ),
    (lambda: as_torch([1, 2]), "holds no state dict (names and tensors), only a list"),
    (lambda: as_torch({}), "holds no state dict (names and tensors), only an empty mapping"),
    (lambda: as_torch({"lr": 0.1}), "holds no state dict (names and tensors), only 'lr' (float)"),
    (
        lambda: as_torch({"a": STATE, "b": STATE}),
        "has several state dicts (a, b): save the one that is meant, alone",
    ),
    (
        lambda: as_torch({"args": argparse.Namespace(lr=1), "state_dict": STATE}),
        (
            "has more in it than tensors (argparse.Namespace), and loading that would run code of"
            " the file: save the weights"
        ),
    ),
    (
        lambda: as_torch(torch.nn.Linear(2, 2)),
        "has more in it than tensors (torch.nn.modules.linear.Linear), and",
    ),
    (
        lambda: as_torch(torch.nn.Linear(2, 2), _use_new_zipfile_serialization=False),
        "has more in it than tensors (torch.nn.mod",
    ),
]


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("number", range(len(SPOILT)))
def test_one_sentence_for_everything_else(tmp_path: Path, number: int, name: str) -> None:
    content, said = SPOILT[number]
    with pytest.raises(DataError) as refused:
        read(tmp_path, content(), name)
    message = str(refused.value)
    assert message.startswith(f"train.weights: {tmp_path / name} {said}")
    assert "\n" not in message and "\x1b" not in message and "weights_only" not in message


def test_a_folder_and_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.pt"):
        with pytest.raises(DataError, match="cannot be read: "):
            state_dict.read(path)


def model() -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, 5.0) for name, tensor in STATE.items()}


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "net.encoder."])
def test_a_prefix_is_left_out_where_that_is_clear(prefix: str) -> None:
    state = model()
    laid = load.lay_over(state, {**under(prefix), "loss.weight": torch.ones(3)}, ["fc"])
    assert laid == (["loss.weight"], prefix)
    assert torch.equal(state["stem.weight"], STATE["stem.weight"]) and torch.equal(
        state["fc.weight"], model()["fc.weight"]
    )


def test_a_prefix_is_not_guessed() -> None:
    for found in (
        {**under("model."), **under("ema.")},
        {**under("model."), "stem.bias": torch.ones(2)},
    ):
        with pytest.raises(DataError) as refused:
            load.lay_over(model(), found, [])
        assert "stem.weight: is missing" in str(refused.value)
        assert "names that the model has not: model.stem.weight, " in str(refused.value)


def test_missing_names_are_shown_beside_those_of_the_file() -> None:
    found = {f"layer{i}.weight": torch.zeros(1) for i in range(14)}
    with pytest.raises(DataError) as refused:
        load.lay_over(model(), found, ["fc"])
    assert str(refused.value).splitlines() == [
        "train.weights: 2 of 2 tensors do not fit the model:",
        "  stem.weight: is missing",
        "  stem.bias: is missing",
        "  names that the model has not: "
        + ", ".join(f"layer{i}.weight" for i in range(12))
        + ", and 2 more",
    ]


def test_numbers_that_are_not_finite_are_refused_by_name() -> None:
    state, found = model(), dict(STATE)
    found["stem.bias"] = torch.tensor([1.0, float("nan")])
    found["fc.weight"] = torch.full((4, 2), float("inf"))
    with pytest.raises(DataError) as refused:
        load.lay_over(state, found, [])
    assert str(refused.value).splitlines() == [
        "train.weights: 2 of 3 tensors have numbers that are not finite:",
        "  stem.bias",
        "  fc.weight",
    ]
    # nothing was copied
    assert all(torch.equal(state[name], tensor) for name, tensor in model().items())
    # a new head's are not taken
    assert load.lay_over(state, {**found, "stem.bias": torch.ones(2)}, ["fc"]).unused == []
