"""`train.parity: bitwise` gives the same bits on any number of ranks, also where that changes in
the middle; DDP does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests import ranks
from trainer import models, parity, randomness
from trainer.batches.batches import Step
from trainer.config.files.json_files import read_jsonl
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load
from trainer.ranks import group
from trainer.state import Trainer
from trainer.train import gradients

# 15 steps of 100 samples, 4 shards of 25; the last one has 37, 2 shards: with 3 ranks and more some
# have none
PARITY = {"epochs": 1, "parity": "bitwise", "parity_shards": 4}
MLP = {"name": "mlp", "hidden": [32], "dropout": 0.2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


def result(run: RunDir, attempt: str) -> tuple[str | None, bytes]:
    """What has to be equal: the hash of the weights, and metrics.jsonl."""
    found = Outcome.read(run.attempt(attempt).outcome)
    assert found is not None and found.status == "completed", ranks.logs(run)
    return found.weights_sha256, run.metrics.read_bytes()


def trained(
    folder: Path, prepared: dict[str, Any], world_size: int, **train: Any
) -> tuple[str | None, bytes]:
    run = ranks.make_run(
        folder / f"on-{world_size}", ranks.config(ranks=world_size, **train), prepared
    )
    assert ranks.train(run, "local-1", world_size) == 0, ranks.logs(run)
    return result(run, "local-1")


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, prepared: dict[str, Any]
) -> tuple[str | None, bytes]:
    """BatchNorm, dropout, momentum, weight decay, augmentation and an average of the weights, on
    one rank.
    """
    return trained(tmp_path_factory.mktemp("alone"), prepared, 1, **PARITY, ema_decay=0.9)


@pytest.mark.parametrize("world_size", [2, 4])
def test_the_same_bits_on_more_ranks(
    tmp_path: Path, prepared: dict[str, Any], alone: tuple[str | None, bytes], world_size: int
) -> None:
    assert trained(tmp_path, prepared, world_size, **PARITY, ema_decay=0.9) == alone


def test_the_same_bits_on_4_then_1_then_2_ranks(
    tmp_path: Path, prepared: dict[str, Any], alone: tuple[str | None, bytes]
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(ranks=4, **PARITY, ema_decay=0.9), prepared)
    # stopped between two log rows
    for number, (world_size, step) in enumerate([(4, 3), (1, 10), (2, None)], start=1):
        ranks.set_execution(run, stop_after_step=step)
        assert ranks.train(run, f"local-{number}", world_size) == 0, ranks.logs(run)
    assert result(run, "local-3") == alone
    said = ranks.logs(run)
    assert (
        "written by 4 rank(s), continued by 1: the same bits" in said
        and "no longer bit-exact" not in said
    )


def test_ddp_has_other_bits_on_two_ranks_and_parity_those_of_one(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    """The same chunks, the same dropout, no BatchNorm: what differs is the order of a sum."""
    ddp = {"epochs": 1, "model": MLP, "micro_batch_size": 25}
    one = trained(tmp_path / "ddp", prepared, 1, **ddp)
    two = trained(tmp_path / "ddp", prepared, 2, **ddp)
    assert one[0] != two[0] and one[1] != two[1]
    assert trained(tmp_path / "parity", prepared, 2, **PARITY, model=MLP) == one


def test_every_setting_together_on_one_rank_and_on_three(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    settings = {
        "parity": "bitwise",
        "precision": "bf16",
        "channels_last": True,
        "label_smoothing": 0.1,
        "clip_grad_norm": 0.5,
        "epochs": 2,
        "optimizer": {"name": "adamw", "lr": 0.01, "decay_bias_and_norm": False},
        "schedule": {"name": "one_cycle"},
        "data": {**ranks.DIGITS, "random_horizontal_flip": True, "validation": 0.2},
        "best_metric": "loss",
        "ema_decay": 0.9,
        "early_stopping": {"patience_evaluations": 9},
        "init": {"name": "kaiming_normal"},
    }
    one = trained(tmp_path, prepared, 1, **settings)
    assert trained(tmp_path, prepared, 3, **settings) == one
    rows = read_jsonl(tmp_path / "on-3" / "t-00000000" / "metrics.jsonl")
    # each sample counted once
    assert sum(row["samples"] for row in rows if row["kind"] == "train") == 2 * 1150
    assert {row["split"] for row in rows if row["kind"] == "eval"} == {"val", "test"}


def test_the_gradient_is_that_of_one_pass_and_the_statistics_are_torchs(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    def make(**train: Any) -> Trainer:
        # its watchdog would end these tests
        config = ranks.config("gradient", execution={"hang_limit_s": None}, **train)
        run = ranks.make_run(tmp_path, config, prepared)
        return Trainer(config, group.start(config, run), load(run))

    together = make(**PARITY, channels_last=True)
    # torch's own momentum, chunk by chunk
    apart = make(epochs=1, micro_batch_size=25, channels_last=True)
    in_order = parity.InShardOrder(gradients, together.model, together.world)
    for t, add_gradients in ((together, in_order), (apart, gradients)):
        t.model.train()
        for step in (0, 14):  # 4 shards and 2
            t.optimizer.zero_grad(set_to_none=False)
            add_gradients(
                t.model, Step(step, t.batches.at(step)), t.config.train, t.world, t.guard, t.sums
            )
    for (name, found), expected in zip(
        together.model.state_dict().items(), apart.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(
            found, expected, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert together.model.stem[1].num_batches_tracked == 6
    for found, expected in zip(together.model.parameters(), apart.model.parameters(), strict=True):
        assert found.grad.stride() == found.stride()  # what the fused optimizers take for granted
        assert torch.equal(found.grad, expected.grad)
    assert torch.equal(together.sums, apart.sums) and together.sums[2] == 137

    plain = make(epochs=1, model={"name": "mlp", "hidden": [16, 16]})
    (batch,) = plain.batches.at(7)
    functional.cross_entropy(plain.model(batch.images), batch.labels).backward()
    cut = make(**PARITY, model={"name": "mlp", "hidden": [16, 16]})
    cut_gradients = parity.InShardOrder(gradients, cut.model, cut.world)
    step = Step(7, cut.batches.at(7))
    cut_gradients(cut.model, step, cut.config.train, cut.world, cut.guard, cut.sums)
    for found, expected in zip(cut.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-7)


def test_a_buffer_that_no_rule_is_for_is_refused() -> None:
    randomness.seed_everything(0)
    model = models.build(ranks.config(model=MLP).train.model, 10, 1, (8, 8))
    assert len(parity.keep_of_running_statistics(model)) == 0
    model.register_buffer("other", torch.zeros(3))
    with pytest.raises(AssertionError, match="other: parity combines BatchNorm's buffers alone"):
        parity.keep_of_running_statistics(model)
