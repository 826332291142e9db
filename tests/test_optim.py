"""Schedules in closed form against torch's own, parameter groups, and the update that a bad
gradient never makes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler

from tests import ranks
from trainer import models, optim
from trainer.config.run import TrainConfig
from trainer.guard import Undone

STEPS_PER_EPOCH, EPOCHS = 7, 5
TOTAL = STEPS_PER_EPOCH * EPOCHS


def rates(schedule: dict[str, Any]) -> list[float]:
    config = ranks.config(schedule=schedule).train
    return [
        optim.learning_rate(0.4, config.schedule, step, STEPS_PER_EPOCH, TOTAL)
        for step in range(TOTAL)
    ]


def torchs(make: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    scheduler, found = make(optimizer), []
    for _ in range(TOTAL):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


def test_schedules_are_torchs() -> None:
    assert rates({"name": "constant"}) == [0.4] * TOTAL
    cosine = torchs(lambda o: lr_scheduler.CosineAnnealingLR(o, TOTAL - 1))
    assert rates({"name": "cosine"}) == pytest.approx(cosine, abs=1e-12)
    steps = torchs(lambda o: lr_scheduler.StepLR(o, 2 * STEPS_PER_EPOCH, 0.1))
    assert rates({"name": "step", "every_epochs": 2}) == pytest.approx(steps)
    milestones = torchs(
        lambda o: lr_scheduler.MultiStepLR(o, [STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH], 0.5)
    )
    assert rates({"name": "multistep", "milestones_epochs": [1, 3], "gamma": 0.5}) == pytest.approx(
        milestones
    )


def test_warm_up_and_one_cycle() -> None:
    warm = rates({"name": "cosine", "warmup_epochs": 1})
    assert warm[:STEPS_PER_EPOCH] == pytest.approx([0.4 * (i + 1) / 7 for i in range(7)])
    assert warm[7] == pytest.approx(0.4) and warm[-1] == pytest.approx(0)
    cycle = rates({"name": "one_cycle", "warmup_fraction": 0.3})
    top = cycle.index(max(cycle))
    assert 0 < cycle[0] < 0.05 and 0.38 < max(cycle) <= 0.4 and top == 10 and cycle[-1] == 0
    assert cycle[:top] == sorted(cycle[:top]) and cycle[top:] == sorted(cycle[top:], reverse=True)


def config(**optimizer: Any) -> TrainConfig:
    return ranks.config(optimizer=optimizer).train


def test_biases_and_norms_can_be_left_out_of_weight_decay() -> None:
    train = config(name="sgd", lr=0.1, weight_decay=0.5, decay_bias_and_norm=False)
    model = models.build(train.model, 10, 1, (8, 8))
    weights, rest = optim.build(model, train).param_groups
    assert (weights["weight_decay"], rest["weight_decay"]) == (0.5, 0.0)
    named = {id(p): n for n, p in model.named_parameters()}
    assert all(named[id(p)].endswith("weight") and p.ndim > 1 for p in weights["params"])
    # of the norms, and biases
    assert {named[id(p)].rsplit(".", 1)[-1] for p in rest["params"]} == {"weight", "bias"}
    assert len(weights["params"]) + len(rest["params"]) == len(named)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"name": "sgd", "lr": 0.1, "momentum": 0.9},
        {"name": "adam", "lr": 0.01, "weight_decay": 0.1},
        {"name": "adamw", "lr": 0.01},
        {"name": "adagrad", "lr": 0.1},
        {"name": "rmsprop", "lr": 0.01, "alpha": 0.9},
        {"name": "adadelta", "lr": 1.0, "rho": 0.9},
    ],
)
def test_a_bad_gradient_changes_neither_weights_nor_state(optimizer: dict[str, Any]) -> None:
    model = torch.nn.Linear(3, 2)
    made = optim.build(model, config(**optimizer))
    made.grad_scale = None  # type: ignore[attr-defined]
    put_back = isinstance(made, Undone)

    def step(value: float, bad: float) -> list[torch.Tensor]:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        made.found_inf = torch.tensor(bad)  # type: ignore[attr-defined]
        made.step()
        # which no formula reads
        names = {name for s in made.state.values() for name in s} - (
            {"step"} if put_back else set()
        )
        state = [
            v
            for s in made.state.values()
            for k, v in s.items()
            if isinstance(v, torch.Tensor) and k in names
        ]
        return [t.detach().clone() for t in (*model.parameters(), *state)]

    if put_back:  # also of the very first step, which makes the state
        fresh = [p.detach().clone() for p in model.parameters()]
        spoilt = step(float("nan"), 1.0)
        assert all(torch.equal(a, b) for a, b in zip(fresh, spoilt[:2], strict=True)) and not any(
            v.any() for v in spoilt[2:]
        )
    before = step(1.0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, step(float("nan"), 1.0), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(before, step(1.0, 0.0), strict=True))


@pytest.mark.parametrize(
    ("model", "data", "parameters"),
    [
        ({"name": "lenet"}, (3, 32), 62_006),
        ({"name": "lenet", "activation": "sigmoid"}, (1, 28), 44_426),
        ({"name": "mlp", "hidden": []}, (1, 28), 7_850),
        ({"name": "mlp", "hidden": [256]}, (1, 28), 203_530),
        ({"name": "resnet"}, (3, 32), 11_173_962),
        ({"name": "resnet", "width": 16, "blocks": [1, 1, 1]}, (1, 8), 77_754),
    ],
)
def test_parameters_worked_out_by_hand(
    model: dict[str, Any], data: tuple[int, int], parameters: int
) -> None:
    channels, size = data
    built = models.build(ranks.config(model=model).train.model, 10, channels, (size, size))
    assert sum(p.numel() for p in built.parameters()) == parameters
    assert built(torch.zeros(2, channels, size, size)).shape == (2, 10)


def test_initialisers_draw_what_they_say() -> None:
    torch.manual_seed(0)
    for init, std in (
        ({"name": "normal", "std": 0.01}, 0.01),
        ({"name": "xavier_uniform"}, (2 / (256 + 784)) ** 0.5),
        ({"name": "kaiming_normal"}, (2 / 256) ** 0.5),
    ):
        train = ranks.config(model={"name": "mlp", "hidden": [256]}, init=init).train
        first = next(
            m
            for m in models.build(train.model, 10, 1, (28, 28), train.init)
            if isinstance(m, torch.nn.Linear)
        )
        assert (
            float(first.weight.detach().std()) == pytest.approx(std, rel=0.02)
            and not first.bias.any()
        )


@pytest.mark.parametrize(
    ("optimizer", "torchs_own"),
    [
        ({"name": "adagrad", "lr": 0.1}, lambda p: torch.optim.Adagrad(p, lr=0.1)),
        (
            {"name": "rmsprop", "lr": 0.01, "alpha": 0.9},
            lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.9),
        ),
        ({"name": "adadelta", "lr": 1.0, "rho": 0.8}, lambda p: torch.optim.Adadelta(p, rho=0.8)),
    ],
)
def test_what_is_put_back_where_bad_is_torchs_own_where_good(
    optimizer: dict[str, Any], torchs_own: Any
) -> None:
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    made, plain = optim.build(ours, config(**optimizer)), torchs_own(theirs.parameters())
    made.found_inf = torch.tensor(0.0)  # type: ignore[attr-defined]
    for _ in range(3):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = q.grad = torch.randn_like(p)
        made.step()
        plain.step()
    assert all(
        torch.equal(p, q) for p, q in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
