"""What a job file may hold, as pydantic models, and a job as it was loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from launch.spec.published import Published
from launch.spec.sweep import Point, Search, Sweep
from trainer.config.run import Execution, Tracking, TrainConfig
from trainer.config.strict import Strict

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,60}$")  # legal for docker, Slurm and wandb


class Resources(Strict):
    """What the job asks for, in submitit's words.

    One Slurm task a node; torchrun starts the ranks in it.
    """

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    nproc_per_node: int | None = Field(
        None, ge=1, description="ranks a node; null: one a GPU, one without GPUs"
    )
    cpus_per_task: int | None = Field(
        None, ge=1, description="CPUs of the node's one task, shared by its ranks"
    )
    mem_gb: float | None = Field(None, gt=0, description="of a node")
    timeout_min: int = Field(60, ge=1, description="the time limit of one attempt, in minutes")

    def ranks_per_node(self) -> int:
        return self.nproc_per_node or max(1, self.gpus_per_node)


class Container(Strict):
    """The image of the docker backend."""

    image: str | None = Field(
        None, min_length=1, description="null: the site's, else batchyard:cpu or batchyard:cuda"
    )


class JobSpec(Strict):
    """A whole job, after `extends`, `fallback` and `--set`."""

    description: str | None = None
    train: TrainConfig
    execution: Execution = Execution()
    resources: Resources = Resources()
    container: Container = Container()
    tracking: Tracking = Tracking()
    after: str | None = Field(
        None,
        min_length=1,
        description=(
            "a job beside this one whose run must be completed first; it is submitted along"
        ),
    )
    sweep: Sweep | None = None
    published: list[Published] = Field(
        [], description="figures that others print of this: what `batchyard results` compares with"
    )


@dataclass(frozen=True)
class Job:
    """A job's name and its file. text: what will stand there, where that is not written yet."""

    name: str
    path: Path
    text: str | None = None


@dataclass(frozen=True)
class Loaded:
    """A job: one spec, or one for each point of its sweep; of a search, for each of its probes.
    written: all of it as data.
    """

    written: dict[str, Any]
    points: list[Point]  # of a job without a sweep: one, without axes
    specs: list[JobSpec]

    @property
    def is_sweep(self) -> bool:
        return bool(self.points[0].axes)

    @property
    def search(self) -> Search | None:
        sweep = self.written.get("sweep")
        return Sweep.model_validate(sweep).search if sweep else None
