"""On an NVIDIA GPU: NCCL under DDP, bf16, continuing to the same bits, and a job of 8 GPUs on the
one that is there.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from tests.cli import SHORT, Shell, outcome
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.datasets.prepare import prepare

pytestmark = pytest.mark.gpu
ON_GPU = {"device": "cuda"}
EXACT = {"deterministic": True}


@pytest.fixture(autouse=True, scope="module")
def gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU here")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


@pytest.fixture(autouse=True)
def exact_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    # what torch's deterministic algorithms ask for
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.mark.parametrize(
    "settings", [{**EXACT}, {**EXACT, "precision": "bf16"}, {"parity": "bitwise"}]
)
def test_a_stopped_run_continues_to_the_same_bits(
    tmp_path: Path, prepared: dict[str, Any], settings: dict[str, Any]
) -> None:
    found = []
    for name, stops in (("whole", []), ("stopped", [7, 15])):
        run = ranks.make_run(tmp_path / name, ranks.config(execution=ON_GPU, **settings), prepared)
        for number, step in enumerate([*stops, None], start=1):
            ranks.set_execution(run, stop_after_step=step)
            assert ranks.train(run, f"local-{number}", 1) == 0, ranks.logs(run)
        end = Outcome.read(run.attempt(f"local-{len(stops) + 1}").outcome)
        assert end is not None and end.status == "completed"
        found.append((end.weights_sha256, run.metrics.read_bytes()))
    assert found[0] == found[1]


def test_a_checkpoint_holds_the_state_before_the_next_update(tmp_path: Path) -> None:
    import torch

    from trainer.checkpoints.files import list_newest_first, load
    from trainer.checkpoints.writer import Writer

    run = RunDir(tmp_path)
    writer, weight = Writer(run, run.attempt("local-1")), torch.empty(25_000_000, device="cuda")
    for step in (1, 2, 3):
        # the device lags behind: save returns before the copy has begun
        torch.cuda._sleep(100_000_000)
        weight.fill_(step)
        writer.save(step, weights={"weight": weight}, trainer={}, manifest={})
        weight.fill_(-1)
    writer.wait()
    for found in map(load, list_newest_first(run)):
        assert bool((found.weights["weight"] == found.manifest["global_step"]).all()), found.path


# The gradients of one step, without and with DDP.
GRADIENTS = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from trainer.batches.batches import Step
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig
from trainer.prepared.arrays import load
from trainer.ranks import group
from trainer.state import Trainer
from trainer.train import gradients

run = RunDir(Path(sys.argv[1]))
config = RunConfig.model_validate_json(run.config.read_text())
world = group.start(config, run)
found = []
for with_ddp in (False, True):
    if with_ddp:
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=world.device)
    t = Trainer(config, world, load(run))
    t.model.train()
    assert isinstance(t.model, torch.nn.parallel.DistributedDataParallel) == with_ddp
    gradients(t.model, Step(14, t.batches.at(14)), config.train, world, t.guard, t.sums)
    found.append([p.grad.clone() for p in t.model.parameters()])
torch.testing.assert_close(found[0], found[1])
dist.destroy_process_group()
"""


def test_nccl_reduces_gradients_to_those_of_one_plain_pass(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    """One rank is all that one GPU can hold; NCCL and DDP run all the same."""
    config = ranks.config(
        execution=ON_GPU, model={"name": "mlp", "hidden": [16]}, micro_batch_size=30
    )
    run = ranks.make_run(tmp_path, config, prepared)
    assert (
        ranks.spawn(["-c", GRADIENTS, str(run.path)], 1, PYTHONPATH=str(Path(__file__).parents[1]))
        == 0
    )


def test_a_job_of_8_gpus_runs_on_one(tmp_path: Path) -> None:
    one = subprocess.run(
        ["nvidia-smi", "-L"], capture_output=True, text=True, check=True
    ).stdout.count("GPU ")
    shell = Shell(tmp_path / "runs", env=(("CUDA_VISIBLE_DEVICES", "0"),))
    options = ("--set", "resources.gpus_per_node=8", "--set", "resources.nproc_per_node=null")
    printed = shell.run("submit", "digits", *SHORT, *options)
    assert (
        one
        and "1 of 8 GPU(s) here: same global batch and micro-batch, more accumulation" in printed
    )
    run = shell.only_run()
    config = read_json(run.config)["execution"]
    assert (config["ranks"], config["device"]) == (8, "cuda")
    assert outcome(run).status == "completed" and outcome(run).test_accuracy > 0.9  # type: ignore[operator]
    names = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert read_json(run.all_attempts()[-1].hardware) == {
        "device": "cuda",
        "name": names.stdout.splitlines()[0],
    }
