"""The batches of a table: rows that live on the device and are given to the model as they are."""

from __future__ import annotations

from torch import Tensor

from trainer.batches.batches import Batches


class Rows(Batches):
    """One rank's micro-batches of every step: rows float32 [n, features, 1, 1], targets float32 [n,
    targets].
    """

    def pictures(self, steps: range) -> tuple[Tensor, Tensor]:
        """All rows of some steps and their targets, on the device."""
        _, index = self.plan.index(steps)
        index = index.to(self.device, non_blocking=True)
        return self.images[index], self.labels[index]

    def normalise(self, images: Tensor) -> Tensor:
        """Prepare has done it where the data want it."""
        return images.contiguous(memory_format=self.format)
