"""Where a job runs, and on what: its backend, its GPUs, its nodes and ranks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from launch.environment import BackendName, Machine
from launch.spec.folders import Folders
from launch.spec.job import JobSpec, Resources
from launch.spec.site import Site
from launch.spec.yaml_tree import Place, Problem, SpecError

# Of one node: a free port of torch's own choice. Without an address torch takes the machine's name,
# which need not resolve.
ONE_NODE = ("--standalone", "--local-addr=127.0.0.1")


@dataclass(frozen=True)
class Placement:
    """How many ranks, where, and what had to be changed for it."""

    nodes: int
    nproc_per_node: int
    device: Literal["cpu", "cuda"]
    cpus: int | None  # of one node; None: the cluster's default
    notes: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        return self.nodes * self.nproc_per_node


@dataclass(frozen=True)
class Destination:
    """Where a run is submitted to.

    python: the interpreter outside containers. user: (uid, gid) that a container's files shall
    belong to.
    """

    backend: BackendName
    site: Site
    folders: Folders
    python: str
    user: tuple[int, int]


def has_gpu(backend: BackendName, site: Site, machine: Machine) -> bool:
    """Whether the chosen place has a GPU: this machine for local and docker; the site's word for
    Slurm, never the login node.
    """
    return site.slurm.has_gpus if backend == "slurm" else machine.gpus > 0


def with_defaults(job: JobSpec, site: Site, backend: BackendName) -> JobSpec:
    """The job with the cluster's default resources where it names none itself."""
    if backend != "slurm":
        return job
    given = site.slurm.resources.model_dump(exclude_none=True)
    missing = {
        name: value for name, value in given.items() if name not in job.resources.model_fields_set
    }
    return (
        job.model_copy(update={"resources": job.resources.model_copy(update=missing)})
        if missing
        else job
    )


def place(
    job: JobSpec, site: Site, machine: Machine, backend: BackendName, *, strict: bool = False
) -> Placement:
    """Fits the job to what is there.

    Raises SpecError where that takes fewer resources than asked and `strict` refuses.
    """
    wants = job.resources
    if backend == "slurm":
        return _place_on_slurm(wants, site, strict=strict)
    asked = wants.nodes * wants.ranks_per_node()
    cpus = min(wants.cpus_per_task or machine.cpus, machine.cpus)
    if wants.gpus_per_node == 0:
        return Placement(1, asked, "cpu", cpus)
    gpus = wants.nodes * wants.gpus_per_node
    if machine.gpus == 0:
        if strict:
            raise _too_few(f"the job asks for {gpus} GPU(s), this machine has none")
        note = (
            f"no GPU here and no fallback in the job: 1 rank on the CPU instead of {asked} on"
            f" {gpus} GPU(s)"
        )
        return Placement(1, 1, "cpu", machine.cpus, (note,))
    if machine.gpus >= gpus:
        return Placement(1, asked, "cuda", cpus)
    if strict:
        raise _too_few(f"the job asks for {gpus} GPU(s), this machine has {machine.gpus}")
    note = (
        f"{machine.gpus} of {gpus} GPU(s) here: same global batch and micro-batch, more"
        " accumulation"
    )
    return Placement(1, min(machine.gpus, asked), "cuda", cpus, (note,))


def _place_on_slurm(wants: Resources, site: Site, *, strict: bool) -> Placement:
    if wants.gpus_per_node and not site.slurm.has_gpus:
        if strict:
            raise _too_few(
                f"the job asks for {wants.gpus_per_node} GPU(s) a node, the site says that there"
                " are none"
            )
        return Placement(
            1,
            1,
            "cpu",
            wants.cpus_per_task,
            ("the site has no GPUs and the job no fallback: 1 rank on a CPU",),
        )
    return Placement(
        wants.nodes,
        wants.ranks_per_node(),
        "cuda" if wants.gpus_per_node else "cpu",
        wants.cpus_per_task,
    )


def fit_precision(
    job: JobSpec, placement: Placement, machine: Machine, backend: BackendName
) -> tuple[JobSpec, Placement]:
    """bf16 on a CPU that has no instructions for it would be slower than fp32: takes fp32 and says
    so.

    A cluster's nodes are not known from here and are left alone.
    """
    if (
        backend == "slurm"
        or placement.device == "cuda"
        or job.train.precision != "bf16"
        or machine.cpu_bf16
    ):
        return job, placement
    note = "this CPU has no bf16 instructions: train.precision is fp32"
    train = job.train.model_copy(update={"precision": "fp32"})
    return job.model_copy(update={"train": train}), replace(
        placement, notes=(*placement.notes, note)
    )


def _too_few(message: str) -> SpecError:
    """The refusal of `--strict-resources`."""
    return SpecError([Problem(Place("--strict-resources"), (), message)])
