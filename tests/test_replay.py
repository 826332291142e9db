"""replay names what is not finite first: the pictures, the weights, a layer, the loss, a gradient;
and the samples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from launch.cli.replay import lines
from tests import ranks
from tests.cli import PROJECT, Shell
from trainer import models
from trainer.config.files.json_files import to_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load
from trainer.ranks.group import World
from trainer.state import Trainer
from trainer.tools.replay import replay

MLP = {"name": "mlp", "hidden": [16]}
STEP = 7  # the eighth
PIXEL = 20


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


@pytest.fixture(autouse=True)
def threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Scene:
    """A run that ended at step STEP + 1 with the weights that a test makes."""

    def __init__(self, folder: Path, prepared: dict[str, Any], **train: Any) -> None:
        self.config = ranks.config(
            **{"model": MLP, "micro_batch_size": 40, "data": {"name": "digits"}, **train}
        )
        self.run = ranks.make_run(folder, self.config, prepared)
        self.run.code.symlink_to(PROJECT)
        write_json(self.run.plan, {"python": sys.executable})
        torch.manual_seed(0)
        given = self.config.train.data.pictures()
        self.model = models.build(
            self.config.train.model,
            len(prepared["classes"]),
            given.channels,
            (given.height, given.width),
        )

    def pictures(self) -> tuple[list[int], torch.Tensor]:
        """The numbers of the step's samples, and its pictures [n, C, H, W] as the model is given
        them.
        """
        world = World(0, 0, 1, torch.device("cpu"), self.run, self.run.attempt("look"), None)
        batches = Trainer(self.config, world, load(self.run)).batches
        _, numbers = batches.plan.index(range(STEP, STEP + 1))
        return numbers.tolist(), torch.cat([batch.images for batch in batches.at(STEP)])

    def told(self) -> dict[str, Any]:
        """What trainer.tools.replay prints, from this process."""
        attempt = self.run.attempt("local-1")
        Outcome("failed", "nan", "local-1", "trainer rank 0", STEP + 1).write(attempt.outcome)
        torch.save(
            {"weights": self.model.state_dict(), "global_step": STEP + 1}, attempt.not_finite
        )
        return json.loads(to_json(replay(self.run, self.config)))

    def typed(self, code: int = 0) -> str:
        return Shell(self.run.path.parent).run("replay", self.run.run_id, code=code)


def printed(told: dict[str, Any]) -> str:
    """What the command prints of it; some tests below type the command."""
    return "\n".join(lines(told))


@pytest.fixture
def scene(tmp_path: Path, prepared: dict[str, Any]) -> Scene:
    return Scene(tmp_path, prepared)


def test_a_layer_that_overflows_for_some_samples(scene: Scene) -> None:
    numbers, pictures = scene.pictures()
    values = pictures.flatten(1)[:, PIXEL]
    with torch.no_grad():
        scene.model[1].weight.zero_()
        scene.model[1].weight[3, PIXEL] = 3e38
    expected = sorted(
        n
        for n, v in zip(numbers, values, strict=True)
        if abs(v * scene.model[1].weight[3, PIXEL]) == torch.inf
    )
    assert 8 < len(expected) < 90
    told = scene.told()
    assert told["first"]["what"] == "output" and told["first"]["layer"] == "1 (Linear)"
    assert told["first"]["largest_input"] == pytest.approx(float(pictures[:40].abs().max()))
    assert (told["samples_not_finite"], told["samples_of_step"], told["global_step"]) == (
        len(expected),
        100,
        8,
    )
    assert [s["sample"] for s in told["samples"]] == expected[:20]
    labels = load(scene.run).splits["train"].labels
    assert [s["class"] for s in told["samples"]] == [str(labels[n]) for n in expected[:20]]
    said = scene.typed()
    assert "step 8 of 30 once more, on one rank, cpu, fp32" in said
    assert (
        "not finite first: the output of 1 (Linear), in the forward pass of chunk 0; its input is"
        " finite, " in said
    )
    assert (
        f"in {len(expected)} of 100 samples, by their numbers in the train split: {expected[0]} ("
        in said
    )
    assert f" and {len(expected) - 8} more" in said and "to try: lower train.optimizer.lr" in said


def test_weights_that_are_not_finite(scene: Scene) -> None:
    with torch.no_grad():
        scene.model[3].weight[0, 0] = torch.inf
    told = scene.told()
    assert (told["first"]["what"], told["first"]["layer"], told["samples"]) == (
        "weights",
        "3.weight",
        [],
    )
    said = printed(told)
    assert "3.weight, before the step begins" in said
    assert "the update of step 7 made them so" in said


def test_a_loss_of_finite_logits(scene: Scene) -> None:
    with torch.no_grad():
        scene.model[3].weight.zero_()
        scene.model[3].bias.copy_(torch.tensor([3e38, -3e38] + [0.0] * 8))
    told = scene.told()
    ones = [s["sample"] for s in told["samples"]]
    assert told["first"]["what"] == "loss" and set(
        load(scene.run).splits["train"].labels[ones]
    ) == {1}
    assert "the loss of chunk 0: all logits are finite, and too far apart" in printed(told)


def test_a_gradient_that_overflows_in_the_backward_pass(scene: Scene) -> None:
    with torch.no_grad():
        scene.model[1].weight.mul_(1e-30)
        scene.model[1].bias.fill_(1e-30)
        scene.model[3].weight.copy_(torch.linspace(-1, 1, 10)[:, None].expand(10, 16) * 3e38)
        scene.model[1].weight[:, PIXEL] = 0
    scene.model[3].bias.data.zero_()
    told = scene.told()
    assert (told["first"]["what"], told["first"]["layer"]) == (
        "gradient of the weight",
        "weight of 1 (Linear)",
    )
    assert (
        "the gradient of weight of 1 (Linear), in the backward pass of chunk 2; its forward pass is"
        " finite" in printed(told)
    )


def test_gradients_whose_norm_overflows(scene: Scene) -> None:
    with torch.no_grad():
        scene.model[1].weight.zero_()
        scene.model[1].bias.fill_(1e22)
        scene.model[3].weight.zero_()
    told = scene.told()
    assert (told["first"]["what"], told["first"]["layer"]) == ("norm of all gradients", "3.weight")
    assert "each is finite; the largest, " in printed(told)


@pytest.fixture
def table(tmp_path: Path) -> Scene:
    """A run on the rows of a table, 200 of them, by one linear layer."""
    data = {
        "name": "linear",
        "features": 2,
        "w": [2.0, -3.4],
        "b": 4.2,
        "train_samples": 200,
        "test_samples": 90,
    }
    prepared = prepare(ranks.config(data=data).train.data, tmp_path, tmp_path)
    return Scene(tmp_path, prepared, data=data, model={"name": "mlp", "hidden": []}, epochs=8)


def test_a_row_of_a_table_at_which_the_layer_overflows(table: Scene) -> None:
    numbers, rows = table.pictures()
    with torch.no_grad():
        table.model[1].weight.copy_(torch.tensor([[0.0, 2e38]]))
    expected = sorted(
        n
        for n, row in zip(numbers, rows.flatten(1), strict=True)
        if abs(row[1] * 2e38) == torch.inf
    )
    assert 2 < len(expected) < 20
    told = table.told()
    assert (told["first"]["what"], told["first"]["layer"]) == ("output", "1 (Linear)")
    assert [s["sample"] for s in told["samples"]] == expected
    said = table.typed()
    assert (
        "not finite first: the output of 1 (Linear), in the forward pass of chunk 0; its input is"
        " finite, " in said
    )
    shown = ", ".join(map(str, expected[:8]))
    assert f"in {len(expected)} of 100 rows, by their numbers in the train split: {shown}" in said


def test_rows_of_a_table_whose_loss_overflows(table: Scene) -> None:
    with torch.no_grad():
        table.model[1].weight.zero_()
        table.model[1].bias.fill_(3e37)
    told = table.told()
    assert (told["first"]["what"], told["samples_not_finite"]) == ("loss", 100)
    assert (
        "the loss of chunk 0: all outputs are finite, and too far from the targets to be squared"
        in printed(told)
    )


def test_nothing_this_time(scene: Scene) -> None:
    assert scene.told()["first"] is None
    assert "every number is finite this time" in scene.typed(code=1)


def test_a_run_without_such_a_step(scene: Scene) -> None:
    assert "nothing to replay" in scene.typed(code=2)
    Outcome("failed", "nan", "local-1", "trainer rank 0", STEP + 1).write(
        scene.run.attempt("local-1").outcome
    )
    assert "kept no weights from before step 8: " in scene.typed(code=2)


# --- after real runs


def test_pictures_that_are_not_finite_on_one_rank_of_two(
    tmp_path: Path, prepared: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = ranks.make_run(
        tmp_path, ranks.config(ranks=2, execution={"stop_after_step": 9}), prepared
    )
    monkeypatch.setenv("BATCHYARD_FAULT", f"nan:0:{STEP}")
    assert ranks.train(run, "local-1", 2) == 0, ranks.logs(run)
    outcome = Outcome.read(run.attempt("local-1").outcome)
    assert outcome and (outcome.verdict, outcome.global_step) == ("nan", STEP + 1)
    assert "`batchyard replay t-00000000` names the layer and the samples" in (outcome.hint or "")
    told = replay(run, ranks.config(ranks=2))
    # rank 0's half: chunk 0
    assert told["first"]["what"] == "pictures" and told["samples_not_finite"] == 50
    monkeypatch.delenv("BATCHYARD_FAULT")
    # the weights are as they were before
    assert replay(run, ranks.config(ranks=2))["first"] is None


@pytest.mark.parametrize(
    ("train", "what"),
    [
        (
            {"optimizer": {"name": "sgd", "lr": 1e30}},
            (
                "weights",
                "output",
                "loss",
                "gradient of the output",
                "gradient of the weight",
                "norm of all gradients",
            ),
        ),
        ({"optimizer": {"name": "sgd", "lr": 1e39}}, ("weights",)),
    ],
)
def test_a_learning_rate_that_is_far_too_high(
    tmp_path: Path, prepared: dict[str, Any], train: Any, what: tuple[str, ...]
) -> None:
    train = {**train, "model": MLP, "schedule": {"name": "constant"}, "epochs": 1}
    run = ranks.make_run(
        tmp_path, ranks.config(execution={"checkpoint_every_steps": 1}, **train), prepared
    )
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    outcome = Outcome.read(run.attempt("local-1").outcome)
    assert outcome and outcome.verdict == "nan"
    assert told_finite(run), "a checkpoint holds what is not finite"
    told = replay(run, ranks.config(**train))
    assert told["first"] and told["first"]["what"] in what


def told_finite(run: RunDir) -> bool:
    """Whether the weights of all checkpoints are finite."""
    found = [torch.load(p, weights_only=True) for p in run.checkpoints.glob("step-*/weights.pt")]
    return all(torch.isfinite(value).all() for weights in found for value in weights.values())
