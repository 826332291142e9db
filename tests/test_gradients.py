"""The expected gradient is the same for any number of ranks and any accumulation; checked against
one plain backward pass.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from tests import gradient_worker, ranks
from trainer import models, randomness
from trainer.batches.batches import Batches, Sampling
from trainer.config.steps import cut
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load

MLP = {"name": "mlp", "hidden": [16, 16]}
# the last batch of the epoch has 37 of 100 samples: with 3 ranks of 34 the last rank has none
STEPS = (0, 7, 14)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


def plain(folder: Path, prepared: dict[str, Any]) -> dict[int, dict[str, torch.Tensor]]:
    """The gradients of each step by one forward and one backward pass over the whole batch."""
    config = ranks.config("plain", model=MLP)
    data = load(ranks.make_run(folder, config, prepared))
    randomness.seed_everything(config.train.seed)
    model = models.build(config.train.model, 10, 1, (8, 8))
    batches = Batches(
        data,
        config.train.data,
        sampling=Sampling(0, 100, 100, rank=0, world_size=1),
        device=torch.device("cpu"),
    )
    found = {}
    for step in STEPS:
        (batch,) = batches.at(step)
        model.zero_grad()
        functional.cross_entropy(model(batch.images), batch.labels).backward()
        found[step] = {name: p.grad.clone() for name, p in model.named_parameters()}
    return found


@pytest.mark.parametrize(
    ("world_size", "micro_batch_size"), [(1, None), (1, 30), (2, None), (3, None), (3, 16)]
)
def test_gradients_do_not_depend_on_ranks(
    tmp_path: Path, prepared: dict[str, Any], world_size: int, micro_batch_size: int | None
) -> None:
    config = ranks.config(ranks=world_size, model=MLP, micro_batch_size=micro_batch_size)
    run = ranks.make_run(tmp_path, config, prepared)
    out = tmp_path / "gradients.pt"
    group = [
        ranks.start(gradient_worker.save, environment, run, out, STEPS)
        for environment in ranks.one_group(world_size)
    ]
    assert ranks.exit_status(group) == 0
    found = torch.load(out, weights_only=True)
    for step, expected in plain(tmp_path, prepared).items():
        for name, gradient in expected.items():
            message = f"step {step}, {name}: {{}}".format
            torch.testing.assert_close(
                found[step][name], gradient, rtol=1e-4, atol=1e-7, msg=message
            )
    assert found[14]["sums"][2] == 100 + 100 + 37  # every sample counted once


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_every_sample_once_an_epoch_and_the_same_chunks_for_every_world_size(
    tmp_path: Path, prepared: dict[str, Any], world_size: int
) -> None:
    config = ranks.config("chunks")
    data = load(ranks.make_run(tmp_path, config, prepared))

    def all_batches(size: int) -> list[Batches]:
        return [
            Batches(
                data,
                config.train.data,
                sampling=Sampling(3, 100, 30, rank=r, world_size=size),
                device=torch.device("cpu"),
            )
            for r in range(size)
        ]

    alone, together = all_batches(1)[0], all_batches(world_size)
    labels = []
    for step in range(15, 30):  # the second epoch
        rounds = [b.at(step) for b in together]
        assert len({len(r) for r in rounds}) == 1, "ranks differ in rounds: DDP would wait for ever"
        by_chunk = {m.chunk: m for r in rounds for m in r if m.chunk is not None}
        expected = alone.at(step)
        assert sorted(by_chunk) == [m.chunk for m in expected]
        for m in expected:
            assert torch.equal(by_chunk[m.chunk].images, m.images), (step, m.chunk)
            labels.append(m.labels)
    counted = torch.bincount(torch.cat(labels), minlength=10)
    assert torch.equal(
        counted, torch.bincount(torch.from_numpy(data.splits["train"].labels.copy()), minlength=10)
    )


def test_a_batch_begins_where_memory_does(tmp_path: Path) -> None:
    """Of 5x5 pictures the slices of a larger piece begin at any multiple of 4 bytes, and by that
    MKL's sums have other bits: a run that was continued after its first step ended with other
    weights.
    """
    config = ranks.config(
        "odd", data={"name": "synthetic", "samples": 70, "size": 5}, global_batch_size=10
    )
    data = load(ranks.make_run(tmp_path, config, prepare(config.train.data, tmp_path, tmp_path)))
    batches = Batches(
        data,
        config.train.data,
        sampling=Sampling(0, 10, 5, rank=0, world_size=1),
        device=torch.device("cpu"),
    )
    for step in range(7):
        for batch in batches.at(step):
            assert batch.images.data_ptr() % 64 == 0 and batch.images.is_contiguous(), (
                step,
                batch.chunk,
            )


def test_cut_is_even_and_never_above_the_most() -> None:
    assert cut(100, 33) == [(0, 25), (25, 50), (50, 75), (75, 100)]
    assert cut(37, 34) == [(0, 18), (18, 37)]
    for samples in range(1, 60):
        for most in range(1, 20):
            sizes = [stop - start for start, stop in cut(samples, most)]
            assert sum(sizes) == samples and max(sizes) <= most and max(sizes) - min(sizes) <= 1


def test_crops_are_the_same_however_the_samples_are_cut_and_uniform() -> None:
    counters = torch.arange(30_000)
    drawn = randomness.integers(randomness.key(1, 2, 3), counters, 5)
    pieces = torch.cat(
        [randomness.integers(randomness.key(1, 2, 3), c, 5) for c in counters.split(7)]
    )
    assert torch.equal(drawn, pieces)
    counts = torch.bincount(drawn, minlength=5).double()
    assert drawn.min() == 0 and drawn.max() == 4
    # chi square, 4 degrees of freedom, p = 0.001; fixed counters
    assert float(((counts - 6000) ** 2 / 6000).sum()) < 18.47
    assert not torch.equal(drawn, randomness.integers(randomness.key(1, 2, 4), counters, 5))
