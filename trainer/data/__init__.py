"""The data sets by name: each converts its sources to uint8 pictures once (prepare); the trainer only maps what prepare made."""

from __future__ import annotations

from trainer.data import digits

DATASETS = {"digits": digits}
