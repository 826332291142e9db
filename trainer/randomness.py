"""Randomness as a pure function of counters: of seed and epoch, sample, step or chunk.

order = f(seed, epoch), augmentation = f(seed, epoch, sample), dropout and mixing = f(seed, step,
chunk). Nothing here has a state that a checkpoint would have to keep, so that resuming is
arithmetic. The mixing function is SplitMix64's (Steele, Lea, Flood: Fast Splittable Pseudorandom
Number Generators, OOPSLA 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

# one stream each; a number is never reused for another purpose
ORDER, INIT, DROPOUT, CROP_Y, CROP_X, FLIP, RESIZED_CROP, AUGMENT, MIX = range(1, 10)

_MASK = (1 << 64) - 1
_GAMMA, _MULTIPLY_1, _MULTIPLY_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def key(*parts: int) -> int:
    """63 bits that depend on every part and their order."""
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK)) + _GAMMA & _MASK
        state = (state ^ state >> 30) * _MULTIPLY_1 & _MASK
        state = (state ^ state >> 27) * _MULTIPLY_2 & _MASK
        state ^= state >> 31
    return state >> 1


def integers(seed: int, counters: Tensor, high: int) -> Tensor:
    """One uniform integer in [0, high) for each counter, the same on every device and however the
    counters are cut.

    seed: from `key`. counters: int64, any shape. Returns int64 of that shape. The bias of the
    modulo is below high / 2**63.
    """
    state = (counters + 1) * _signed(_GAMMA) + seed  # int64 arithmetic wraps, as SplitMix64 wants
    state = (state ^ _shift(state, 30)) * _signed(_MULTIPLY_1)
    state = (state ^ _shift(state, 27)) * _signed(_MULTIPLY_2)
    return _shift(state ^ _shift(state, 31), 1) % high


def uniform(seed: int, counters: Tensor) -> Tensor:
    """One uniform number in [0, 1) for each counter, float64 of 53 random bits, as `integers`
    otherwise.
    """
    return integers(seed, counters, 1 << 53).double() * 2.0**-53


def _shift(value: Tensor, bits: int) -> Tensor:
    """A logical shift to the right (torch's own keeps the sign)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def order(seed: int, epoch: int, samples: int) -> Tensor:
    """The order of an epoch: a permutation of 0..samples-1, int64, on the CPU."""
    return torch.randperm(samples, generator=torch.Generator().manual_seed(key(seed, ORDER, epoch)))


def seed_everything(seed: int) -> None:
    """Seeds torch's default generators, before weights are drawn."""
    torch.manual_seed(key(seed, INIT))


def seed_dropout(seed: int, step: int, chunk: int, device: torch.device) -> None:
    """Seeds the generator that dropout draws from. 1 us on a CPU, where `torch.manual_seed` takes
    91.
    """
    value = key(seed, DROPOUT, step, chunk)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)
