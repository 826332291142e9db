"""Keeps what is not finite out of the weights: decided on the device, without a wait, so that no
step costs a synchronisation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainer.freeze import FrozenBatchNorm2d

# torch.amp.GradScaler's own: dynamic loss scaling (Micikevicius et al., arXiv:1710.03740, section
# 3.2)
FIRST_SCALE, GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0**16, 2.0, 0.5, 2000
LEAST_SCALE = 2.0**-10  # 26 updates in a row were not finite: no scale will help


class Guard:
    """Turns an update whose gradient is not finite into a no-op for weights, optimizer state and
    BatchNorm's buffers.

    fp32 and bf16: that update and every later one, so that the state stays as it was before the
    first bad step, whose number is `good_steps()` + 1 after the guard was made. fp16: that update
    alone, and the loss scale is halved; the run counts as spoilt once the scale is below
    LEAST_SCALE. The flag is read (`spoilt`) at log and checkpoint steps only; it is the same on
    every rank, since it comes from the reduced gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        precision: str,
        device: torch.device,
    ) -> None:
        self.optimizer = optimizer
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.not_finite = torch.zeros((), device=device)
        self.bad = self.not_finite  # of the last update: 1 where it was refused
        self.steps, self.bad_steps = 0, torch.zeros((), dtype=torch.float64, device=device)
        self.scale = torch.tensor(FIRST_SCALE, device=device) if precision == "fp16" else None
        self.growth_tracker = torch.zeros((), dtype=torch.int32, device=device)
        self.buffers = flatten_buffers(model)
        self.kept = self.buffers.clone()
        optimizer.grad_scale = None  # beside found_inf: what the fused kernels look for

    def scaled(self, weight: Tensor) -> Tensor:
        """What the backward pass begins with, for a loss that counts `weight`, float32 []."""
        return weight if self.scale is None else weight * self.scale

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the reduced gradient, float32 []; takes fp16's loss scale out of the
        gradients first.

        Afterwards `optimizer.step()` does nothing where the norm is not finite, and `settle` puts
        the buffers back.
        """
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if self.scale is not None:
            torch._foreach_div_(gradients, self.scale)
        # torch.nn.utils.get_total_norm of tensors of one device and type, without its sorting of
        # them
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # 0 where it is finite; of an infinity, too, the difference is NaN
        bad = torch.nan_to_num_(norm - norm, nan=1.0)
        if self.scale is None:
            torch.maximum(self.not_finite, bad, out=self.not_finite)
            bad = self.not_finite
        else:
            torch._amp_update_scale_(
                self.scale, self.growth_tracker, bad, GROWTH, BACKOFF, GROWTH_INTERVAL
            )
            torch.maximum(self.not_finite, (self.scale < LEAST_SCALE).float(), out=self.not_finite)
        self.bad = bad
        self.optimizer.found_inf = bad  # read by the fused kernels, as GradScaler sets it
        return norm

    def settle(self) -> None:
        """After the update: a bad step's forward pass has spoilt BatchNorm's buffers, which become
        what they were before it.
        """
        self.steps += 1
        self.bad_steps += self.not_finite
        if len(self.buffers):
            torch.where(self.bad > 0, self.kept, self.buffers, out=self.buffers)
            self.kept.copy_(self.buffers)

    def spoilt(self) -> bool:
        """Whether an update has been refused for good, or has made a weight that is not finite.

        Waits for the device.
        """
        return bool(self.not_finite.item()) or not self.weights_are_finite()

    def good_steps(self) -> int:
        """How many updates came before the first that was refused for good.

        Waits for the device.
        """
        return self.steps - int(self.bad_steps.item())

    def weights_are_finite(self) -> bool:
        """A finite gradient may still lead to an update that overflows. Waits for the device."""
        return bool(torch.stack([torch.isfinite(p.detach()).all() for p in self.parameters]).all())

    def state_dict(self) -> dict[str, Any]:
        return (
            {}
            if self.scale is None
            else {"scale": self.scale, "growth_tracker": self.growth_tracker}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up the loss scale again; call it after the model's weights and buffers
        are loaded.
        """
        if self.scale is not None:
            self.scale.copy_(state["scale"])
            self.growth_tracker.copy_(state["growth_tracker"])
        self.keep_buffers()

    def keep_buffers(self) -> None:
        """Takes the buffers as they are for good ones."""
        self.kept.copy_(self.buffers)


class Undone(torch.optim.Optimizer):
    """For optimizers of torch without a kernel that looks for `found_inf`: where it is set, what
    the update did is put back.

    It costs a copy of weights and state each step. The state's `step` lies on the host and goes on:
    none of the formulas reads it.
    """

    found_inf: Tensor | None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        before = {key: tensor.clone() for key, tensor in self._tensors()}
        # Adagrad's plain loop refuses to run where it is set
        bad, self.found_inf = self.found_inf, None
        assert bad is not None, "the guard sets it before each step"
        loss = super().step(closure)
        self.found_inf = bad
        for key, tensor in self._tensors():  # state that this very step made began at zero
            torch.where(bad > 0, before.get(key, torch.zeros_like(tensor)), tensor, out=tensor)
        return loss

    def _tensors(self) -> Iterator[tuple[tuple[int, str], Tensor]]:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            yield (id(parameter), ""), parameter.detach()
            for name, value in self.state[parameter].items():
                if name != "step":
                    yield (id(parameter), name), value


def flatten_buffers(model: nn.Module) -> Tensor:
    """Makes the model's floating-point buffers views of one float32 tensor, which it returns: one
    kernel then serves them all.

    Those of frozen layers, which nothing changes, stay what they are.
    """
    owners = [
        (module, name, buffer)
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
        if buffer.is_floating_point() and not isinstance(module, FrozenBatchNorm2d)
    ]
    if not owners:
        return torch.zeros(0)
    flat = torch.cat([b.detach().float().reshape(-1) for _, _, b in owners])
    position = 0
    for module, name, buffer in owners:
        module._buffers[name] = flat[position : position + buffer.numel()].view(buffer.shape)
        position += buffer.numel()
    return flat
