"""Faults that a drill injects at a named point."""

from __future__ import annotations

import os
import signal
import time

from torch import Tensor

from trainer.config.files.layout import RunDir
from trainer.ranks.group import World


def kill_point(run: RunDir, point: str, step: int) -> None:
    """For tests and drills: kills this process where BATCHYARD_FAULT is `kill:<point>:<step>`, once
    in the life of the run.
    """
    if (
        os.environ.get("BATCHYARD_FAULT") == f"kill:{point}:{step}"
        and not run.killed(point, step).exists()
    ):
        run.killed(point, step).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def inject_fault(world: World, step: int, images: Tensor) -> None:
    """Does nothing, unless BATCHYARD_FAULT=kind:rank:step (exception, hang, nan) names this rank
    and step: for tests and drills.
    """
    kind, _, place = os.environ.get("BATCHYARD_FAULT", "").partition(":")
    if place != f"{world.rank}:{step}":
        return
    if kind == "exception":
        raise RuntimeError(f"BATCHYARD_FAULT={kind}:{place}")
    while kind == "hang":
        time.sleep(1)
    if kind == "nan":
        images.fill_(float("nan"))
