"""Weights to begin with: found, held against their sha256, laid over a model; parts of a model that
training leaves alone.
"""

from __future__ import annotations

import hashlib
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from launch.spec import load
from tests import ranks
from tests.cli import PROJECT, Shell, outcome
from tests.test_data import tool
from trainer import freeze, models, optim
from trainer.checkpoints import files
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.weights import Weights
from trainer.datasets.prepare import prepare
from trainer.prepared.errors import DataError
from trainer.weights import fetch

ALL_BUT_THE_HEAD = ["*", "!fc.*"]
RESNET = {"name": "resnet", "width": 4, "blocks": [1, 1]}
SHORT = {"epochs": 1, "max_steps": 3, "model": RESNET}


def fresh(classes: int = 10, **train: Any) -> torch.nn.Module:
    torch.manual_seed(7)
    config = ranks.config(model=RESNET, **train).train
    return models.build(config.model, classes, 1, (8, 8), config.init)


def saved(path: Path, state: Any) -> dict[str, str]:
    """Writes a file of weights; returns what a job says of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def prepared_run(
    folder: Path, run_id: str = "t-00000000", *, world: int = 1, **train: Any
) -> RunDir:
    """A run whose data and weights are prepared as submit does, from the raw data in `folder`."""
    config = ranks.config(run_id, ranks=world, **{**SHORT, **train})
    manifest = prepare(config.train.data, folder, folder / "cache")
    given = config.train.weights
    record = (
        {"weights": fetch.bring(given, folder, folder / "cache")} if given and not given.run else {}
    )
    return ranks.make_run(folder / "runs", config, {**manifest, **record})


def trained(run: RunDir, world: int = 1, attempt: str = "local-1") -> dict[str, torch.Tensor]:
    assert ranks.train(run, attempt, world) == 0, ranks.logs(run)
    found, _ = files.find(run, "latest")
    return found.weights


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_a_local_file_but_for_a_new_head(tmp_path: Path, name: str) -> None:
    state = fresh(classes=3).state_dict()  # of other classes: the head cannot be taken
    begin = {
        "weights": saved(tmp_path / name, state),
        "init": {"name": "xavier_uniform"},
        "freeze": ALL_BUT_THE_HEAD,
    }
    run = prepared_run(tmp_path, freeze_batch_norm=True, **begin)
    (tmp_path / name).unlink()  # the cache has it
    found = trained(run)
    # bit for bit, statistics too
    assert all(torch.equal(found[n], t) for n, t in state.items() if not n.startswith("fc."))
    assert found["fc.weight"].shape == (
        10,
        8,
    ) and f"begins with the weights of {name}, but for a new fc" in ranks.logs(run)


def test_a_checkpoint_of_a_tutorial_and_ddp_prefixes(tmp_path: Path) -> None:
    state = fresh().state_dict()
    given = {
        "epoch": 3,
        "arch": "resnet",
        "state_dict": {f"module.{n}": t for n, t in state.items()},
    }
    run = prepared_run(
        tmp_path,
        weights={**saved(tmp_path / "w.pt", given), "head": "loaded"},
        freeze=["*", "!stem.0.weight"],
    )
    found = trained(run)
    assert torch.equal(found["fc.weight"], state["fc.weight"]) and not torch.equal(
        found["stem.0.weight"], state["stem.0.weight"]
    )


@pytest.mark.parametrize(("world", "parity"), [(1, None), (2, None), (2, "bitwise")])
def test_frozen_parameters_do_not_change_by_a_bit(
    tmp_path: Path, world: int, parity: str | None
) -> None:
    state = fresh().state_dict()
    decaying = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
    begin: dict[str, Any] = {
        "weights": saved(tmp_path / "w.pt", state),
        "freeze": ALL_BUT_THE_HEAD,
        "parity": parity,
    }
    begin["optimizer"] = decaying
    free = trained(prepared_run(tmp_path, "free-00000000", world=world, **begin), world)
    kept = trained(
        prepared_run(tmp_path, "kept-00000000", world=world, freeze_batch_norm=True, **begin), world
    )
    frozen = {name for name, _ in fresh().named_parameters() if not name.startswith("fc.")}
    for found in (free, kept):
        assert all(torch.equal(found[name], state[name]) for name in frozen)
        assert not torch.equal(found["fc.weight"], state["fc.weight"])
    statistics = [
        name
        for name in state
        if name.endswith(("running_mean", "running_var", "num_batches_tracked"))
    ]
    assert all(torch.equal(kept[name], state[name]) for name in statistics)
    # only where the job says so do they stay
    assert not any(torch.equal(free[name], state[name]) for name in statistics)


def test_a_stopped_run_does_not_take_the_weights_again(tmp_path: Path) -> None:
    begin: dict[str, Any] = {"weights": saved(tmp_path / "w.pt", fresh().state_dict())}
    begin |= {"freeze": ["stem.*"], "freeze_batch_norm": True}
    whole = prepared_run(tmp_path, "whole-00000000", **begin)
    run = prepared_run(tmp_path, "stopped-00000000", **begin)
    ranks.set_execution(run, stop_after_step=2)
    trained(run)
    ranks.set_execution(run, stop_after_step=None)
    assert files.weights_sha256(trained(run, attempt="local-2")) == files.weights_sha256(
        trained(whole)
    )
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_what_does_not_fit_is_listed_by_name(tmp_path: Path) -> None:
    state = fresh().state_dict()
    state["stem.0.weight"] = torch.zeros(4, 3, 3, 3)
    del state["stages.0.conv1.weight"]
    (tmp_path / "data").mkdir()
    given = saved(tmp_path / "data/w.pt", state)
    done = prepare_by_hand(tmp_path, {"weights": given})
    assert (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.splitlines()
        == [
            "train.weights: 2 of 36 tensors do not fit the model:",
            "  stem.0.weight: [4, 3, 3, 3], the model's is [4, 1, 3, 3]",
            "  stages.0.conv1.weight: is missing",
        ]
    )


def prepare_by_hand(folder: Path, train: dict[str, Any]) -> Any:
    """`python -m trainer.tools.prepare`, as submit runs it, without the start of torch."""
    _, _, name, *arguments = tool(folder, ranks.DIGITS)
    config = Path(next(a for a in arguments if str(a).endswith("config.json")))
    config.write_text(ranks.config(**{**SHORT, **train}).model_dump_json())
    return ranks.run_module(name, arguments, folder)


def test_a_pattern_that_matches_nothing_and_one_that_leaves_nothing(tmp_path: Path) -> None:
    done = prepare_by_hand(tmp_path, {"freeze": ["layer1.*", "stem.*", "!head.*"]})
    assert done.returncode == 2 and done.stderr.startswith(
        "train.freeze: 'layer1.*', '!head.*' matches no parameter of the model, which has"
        " stem.0.weight, stem.1.weight,"
    )
    assert (
        prepare_by_hand(tmp_path, {"freeze": ["*"]}).stderr
        == "train.freeze: nothing is left to train; '!fc.*' at its end trains the last layer\n"
    )


def test_the_last_pattern_that_matches_decides() -> None:
    every = ["stem.weight", "body.weight", "body.bias", "fc.weight"]
    assert freeze.names(every, ["*", "!fc.*"]) == set(every[:3])
    assert freeze.names(every, ["body.*", "!*.bias", "fc.*"]) == {"body.weight", "fc.weight"}


def test_a_file_that_holds_no_weights(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    path, said = tmp_path / "data/w.pt", "is neither a file of torch.save nor one of safetensors"
    path.write_bytes(b"no weights")
    given = {"file": "w.pt", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    done = prepare_by_hand(tmp_path, {"weights": given})
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_another_sha256_and_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*/w\.pt\. Put it there, or name"):
        fetch.bring(Weights(file="w.pt", sha256="0" * 64), tmp_path, tmp_path / "cache")
    given = saved(tmp_path / "w.pt", {})
    with pytest.raises(DataError, match=f"has the sha256 {given['sha256']}, the job says 000"):
        fetch.bring(Weights(file="w.pt", sha256="0" * 64), tmp_path, tmp_path / "cache")
    assert not list((tmp_path / "cache/weights").iterdir())


def test_fetched_checked_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    served, cache = tmp_path / "served", tmp_path / "cache"
    served.mkdir()
    cache.mkdir()
    content = b"weights"
    name = f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (served / name).write_bytes(content)
    (served / "tiny-00000000.pth").write_bytes(content)
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(served))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        assert fetch.fetch(f"{address}/{name}", cache).read_bytes() == content
        with pytest.raises(DataError, match="invalid hash value"):
            fetch.fetch(f"{address}/tiny-00000000.pth", cache)
    finally:
        server.shutdown()
        server.server_close()
    assert fetch.fetch(f"{address}/{name}", cache).exists()  # nobody serves it any more
    with pytest.raises(
        DataError,
        match=(
            r"tiny-11111111.pth is not in .*cache, nor could be fetched from .*Put the file there"
        ),
    ):
        fetch.fetch(f"{address}/tiny-11111111.pth", cache)
    theirs = tmp_path / "torch/hub/checkpoints"
    theirs.mkdir(parents=True)
    # torch.hub's own cache is looked into, and not believed
    (theirs / "tiny-22222222.pth").write_bytes(content)
    with pytest.raises(
        DataError, match=r"its name says 22222222\.\.\.: remove it to fetch it again"
    ):
        fetch.fetch(f"{address}/tiny-22222222.pth", cache)
    assert [p.name for p in cache.iterdir() if p.name.startswith(".")] == []


def test_torchvisions_names_are_its_own(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(
        DataError,
        match=(
            r"has no ResNet18_Weights\.IMAGENET1K_V9; did you mean ResNet18_Weights\.IMAGENET1K_V1"
        ),
    ):
        fetch.bring(Weights(torchvision="ResNet18_Weights.IMAGENET1K_V9"), tmp_path, tmp_path)


def test_the_last_layer_has_a_rate_of_its_own() -> None:
    config = ranks.config(
        model=RESNET,
        optimizer={
            "name": "sgd",
            "lr": 0.1,
            "weight_decay": 0.5,
            "head_lr_factor": 10.0,
            "decay_bias_and_norm": False,
        },
    ).train
    model = fresh()
    made = optim.build(model, config)
    optim.set_rate(made, 0.02)
    named = {id(p): name for name, p in model.named_parameters()}
    found = {
        named[id(p)]: (g["lr"], g["weight_decay"]) for g in made.param_groups for p in g["params"]
    }
    assert set(found) == set(named.values())
    assert all(
        lr == pytest.approx(0.2 if name.startswith("fc.") else 0.02)
        for name, (lr, _) in found.items()
    )
    assert found["fc.weight"][1] == 0.5 and found["fc.bias"][1] == 0.0
    made.load_state_dict(made.state_dict())
    optim.set_rate(made, 0.001)  # as after a resume
    assert made.param_groups[-1]["lr"] == pytest.approx(0.01) and made.param_groups[0][
        "lr"
    ] == pytest.approx(0.001)
    freeze.apply(model, ALL_BUT_THE_HEAD, batch_norm=False)
    # what is frozen is no optimizer's
    assert [len(g["params"]) for g in optim.build(model, config).param_groups] == [1, 1]


JOB = """
train:
  epochs: 1
  max_steps: 2
  global_batch_size: 100
  data: {name: digits}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd, lr: 1.0e-6}
resources: {nproc_per_node: 1, cpus_per_task: 1}
tracking: {mode: disabled}
"""


def job(folder: Path, name: str, **train: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(
        JOB.replace(
            "  epochs: 1\n",
            "  epochs: 1\n" + "".join(f"  {k}: {json.dumps(v)}\n" for k, v in train.items()),
        )
    )
    return path


@pytest.mark.long
def test_weights_of_a_job_that_is_submitted_along(tmp_path: Path) -> None:
    shell, jobs = Shell(tmp_path / "runs"), tmp_path / "jobs"
    job(jobs, "pretrain", seed=5)
    child = job(jobs, "finetune", weights={"run": "pretrain"}, freeze=["1.*"])
    shown = shell.run("show", str(child))
    shell.run("submit", str(child))
    (before,) = (RunDir(p) for p in shell.runs.glob("pretrain-*"))
    (after,) = (RunDir(p) for p in shell.runs.glob("finetune-*"))
    assert read_json(after.config)["train"]["weights"]["run"] == before.run_id
    assert read_json(after.plan)["after"] == str(before.path)
    # the same id before and after the parent has run
    assert f"run        {after.run_id} " in shown
    of_parent, own = (files.find(run, "latest")[0].weights for run in (before, after))
    assert torch.equal(of_parent["1.weight"], own["1.weight"]) and not torch.equal(
        of_parent["3.weight"], own["3.weight"]
    )
    assert f"begins with the weights of {before.run_id} (step-2." in ranks.logs(after)
    assert " is done: " in shell.run("submit", after.run_id)  # by its own id it goes on, too
    job(jobs, "pretrain", seed=6)
    # other weights, another run
    assert f"run        {after.run_id} " not in shell.run("show", str(child))


@pytest.mark.long
def test_weights_of_a_run_by_its_id_and_of_none(tmp_path: Path) -> None:
    shell, jobs = Shell(tmp_path / "runs"), tmp_path / "jobs"
    shell.run("submit", str(job(jobs, "pretrain")))
    (before,) = shell.runs.glob("pretrain-*")
    shell.run("submit", str(job(jobs, "finetune", weights={"run": before.name, "head": "loaded"})))
    (after,) = (RunDir(p) for p in shell.runs.glob("finetune-*"))
    assert outcome(after).status == "completed" and "but for a new" not in ranks.logs(after)
    said = shell.run(
        "submit", str(job(jobs, "other", weights={"run": "pretrain-12345678"})), code=2
    )
    assert (
        "train.weights.run: there is no pretrain-12345678.yaml beside this job, and no run"
        " 'pretrain-12345678' in" in said
    )


def test_old_ids_stay() -> None:
    digits = load.load(load.find("digits", PROJECT), (), without_gpu=True)
    assert digits.train.digest()[:8] == "213c57c3"
