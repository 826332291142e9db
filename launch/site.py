"""What differs between clusters and machines: site.yaml, and this machine itself. Reads the environment; knows no job."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from launch import paths, yaml_tree
from launch.mistakes import validate
from launch.yaml_tree import SpecError
from trainer.config.strict import Strict

BackendName = Literal["local", "docker", "slurm"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)


class Paths(Strict):
    """Folders; `~` is the home folder. null: data ./data (or $BATCHYARD_DATA), runs ./runs, cache ~/.cache/batchyard."""

    data: str | None = None
    cache: str | None = None
    runs: str | None = None
    local_scratch: str | None = Field(
        None, description="Slurm: a folder of each node's own disk, as in $TMPDIR/data (expanded there): prepared data is copied "
        "there once a node; null: read from the cache"
    )  # fmt: skip


class SlurmDefaults(Strict):
    """What a job gets on this cluster where its own `resources` say nothing."""

    cpus_per_task: int | None = Field(None, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    timeout_min: int | None = Field(None, ge=1)


class SlurmSite(Strict):
    """The cluster's words for sbatch, and what its jobs need before they start."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    has_gpus: bool = Field(True, description="false: `fallback` applies to jobs that ask for GPUs")
    resources: SlurmDefaults = SlurmDefaults()
    environment: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] | None = Field(
        None, description="names of the variables that a job takes along from where it is submitted; null: all"
    )
    grace_s: int = Field(120, ge=10, description="seconds before the time limit at which the job is told to stop")
    requeue: bool = Field(True, description="false: where jobs may not be requeued, another one follows a job that goes on")
    setup: list[str] = Field([], description="shell lines before the job (module load ...); a failing one stops the job")
    srun_args: list[str] = Field([], description="further arguments of srun")
    additional_parameters: dict[str, str | int | float | bool] = Field({}, description="further sbatch options")


class DockerSite(Strict):
    """The container engine of this machine."""

    client: str = Field("docker", description="the command; podman understands the same options")
    image: str | None = Field(None, description="null: batchyard:cuda for GPU jobs, batchyard:cpu for others")
    network: Literal["none", "host", "bridge"] = "none"
    shm_size: str = Field("2g", description="shared memory; docker's own 64 MB breaks DataLoader workers")


class Site(Strict):
    """site.yaml."""

    backend: BackendName = "local"
    python: str | None = Field(None, description="the Python with torch, on every node; null: this one")
    paths: Paths = Paths()
    slurm: SlurmSite = SlurmSite()
    docker: DockerSite = DockerSite()


@dataclass(frozen=True)
class Machine:
    """What one machine has."""

    gpus: int
    cpus: int
    cpu_bf16: bool = True  # has instructions for bf16


def load(path: Path | None, project: Path) -> tuple[Site, Path | None]:
    """The site and its file, which is `path`, or where paths.site_file finds it. Raises SpecError and NoSiteFile."""
    if (found := paths.site_file(path, project)) is None:
        return Site(), None
    site, problems = validate(Site, yaml_tree.read(found))
    if site is None:
        raise SpecError(problems)
    return site, found


@dataclass(frozen=True)
class Folders:
    """Absolute paths."""

    data: Path
    cache: Path
    runs: Path


def folders(site: Site, data_dir: Path | None = None) -> Folders:
    """Where things lie: `data_dir` (an option of the call), else the site's, else $BATCHYARD_DATA and the defaults."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchyard"
    data = data_dir or site.paths.data or os.environ.get("BATCHYARD_DATA") or "data"
    return Folders(
        *(Path(p).expanduser().absolute() for p in (data, site.paths.cache or cache, site.paths.runs or paths.RUNS))
    )


def machine() -> Machine:
    """This machine: its GPUs by nvidia-smi or the driver's device files, its CPUs as this process may use them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _gpus()
    if visible is not None:
        gpus = min(gpus, len([v for v in visible.split(",") if v.strip() not in ("", "-1")]))
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return Machine(gpus, len(affinity(0)) if affinity else os.cpu_count() or 1, _cpu_bf16())


def _cpu_bf16() -> bool:
    """x86: avx512_bf16 or amx_bf16; Arm: bf16. A system that does not tell is believed."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", text))


def _gpus() -> int:
    command = shutil.which("nvidia-smi")
    if command:
        try:
            listing = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return 0
        return sum(line.startswith("GPU ") for line in listing.stdout.splitlines()) if listing.returncode == 0 else 0
    if not Path("/dev/nvidiactl").exists():
        return 0
    return sum(p.name[6:].isdigit() for p in Path("/dev").glob("nvidia[0-9]*"))


def python(site: Site) -> str:
    """The Python that runs the trainer."""
    return str(Path(site.python).expanduser()) if site.python else sys.executable


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child, with changes."""
    return {**os.environ, **changes}
