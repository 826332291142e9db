"""site.yaml: what differs between clusters and machines, as a person writes it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from launch import environment as site
from launch import slurm_commands
from launch.environment import BackendName
from launch.spec import yaml_tree
from launch.spec.messages import validate
from launch.spec.yaml_tree import SpecError
from trainer.config.strict import Strict


class Paths(Strict):
    """Folders; `~` is the home folder. null: data ./data (or $BATCHYARD_DATA), runs ./runs, cache
    ~/.cache/batchyard.
    """

    data: str | None = None
    cache: str | None = None
    runs: str | None = None
    local_scratch: str | None = Field(
        None,
        description=(
            "Slurm: a folder of each node's own disk, as in $TMPDIR/data (expanded there): prepared"
            " data is copied there once a node; null: read from the cache"
        ),
    )


class SlurmDefaults(Strict):
    """What a job gets on this cluster where its own `resources` say nothing."""

    cpus_per_task: int | None = Field(None, ge=1)
    mem_gb: float | None = Field(None, gt=0)
    timeout_min: int | None = Field(None, ge=1)


# options of sbatch with which a submit would not be one job that can be found again
NOT_ADDITIONAL = {
    "array": "would make several jobs of one run",
    "clusters": "would send jobs to clusters where they are not looked for",
    "wait": "would keep sbatch until the job has ended",
    "test-only": "would submit nothing",
    "wrap": "would take the place of the job's script",
}


class SlurmSite(Strict):
    """The cluster's words for sbatch, and what its jobs need before they start."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    has_gpus: bool = Field(
        default=True, description="false: `fallback` applies to jobs that ask for GPUs"
    )
    resources: SlurmDefaults = SlurmDefaults()
    environment: list[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]] | None = Field(
        None,
        description=(
            "names of the variables that a job takes along from where it is submitted; null: all"
        ),
    )
    grace_s: int = Field(
        120, ge=10, description="seconds before the time limit at which the job is told to stop"
    )
    requeue: bool = Field(
        default=True,
        description="false: where jobs may not be requeued, another one follows a job that goes on",
    )
    setup: list[str] = Field(
        [], description="shell lines before the job (module load ...); a failing one stops the job"
    )
    srun_args: list[str] = Field([], description="further arguments of srun")
    additional_parameters: dict[str, str | int | float | bool] = Field(
        {}, description="further sbatch options"
    )

    @field_validator("additional_parameters")
    @classmethod
    def _one_job_here(
        cls, given: dict[str, str | int | float | bool]
    ) -> dict[str, str | int | float | bool]:
        for name in given:
            if why := NOT_ADDITIONAL.get(name.replace("_", "-")):
                raise ValueError(f"{name} {why}: leave it out")
        return given


class DockerSite(Strict):
    """The container engine of this machine."""

    client: str = Field("docker", description="the command; podman understands the same options")
    image: str | None = Field(
        None, description="null: batchyard:cuda for GPU jobs, batchyard:cpu for others"
    )
    network: Literal["none", "host", "bridge"] = "none"
    shm_size: str = Field(
        "2g", description="shared memory; docker's own 64 MB breaks DataLoader workers"
    )


class Site(Strict):
    """site.yaml."""

    backend: BackendName = "local"
    python: str | None = Field(
        None, description="the Python with torch, on every node; null: this one"
    )
    paths: Paths = Paths()
    slurm: SlurmSite = SlurmSite()
    docker: DockerSite = DockerSite()
    trusted: list[Annotated[str, Field(pattern=r"^([~/].*|[^/]+)$")]] = Field(
        [],
        description=(
            "users, groups and folders (absolute, or with ~) whose runs' code may be run beside"
            " one's own"
        ),
    )


def load(path: Path | None, project: Path) -> tuple[Site, Path | None]:
    """The site and its file, which is `path`, or where site.find finds it.

    Raises SpecError and NoSiteFile.
    """
    if (found := site.find(path, project)) is None:
        return Site(), None
    read, problems = validate(Site, yaml_tree.read(found))
    if read is None:
        raise SpecError(problems)
    return read, found


def with_variables(given: Site) -> tuple[Site, tuple[str, ...]]:
    """The site with what a cluster's own variables say of sbatch's options where the file is
    silent.

    Also returns a sentence for each of sbatch's variables, whether it counts or not.
    """
    used, notes = given.slurm, []
    for variable, value in slurm_commands.site_variables().items():
        option = slurm_commands.SITE_VARIABLES[variable]
        known = getattr(used, option, None) or used.additional_parameters.get(option)
        if known is None:
            used = _with_option(used, option, value)
            notes.append(f"{option} {value} comes from {variable} in the environment")
        elif str(known) != value:
            notes.append(
                f"{variable}={value} in the environment is not used: the site file says {known}"
            )
    if unused := slurm_commands.unused_variables():
        notes.append(
            f"{', '.join(unused)} in the environment: not used, for what a job gets is in its file "
            "and in the site file"
        )
    return given.model_copy(update={"slurm": used}), tuple(notes)


def _with_option(used: SlurmSite, option: str, value: str) -> SlurmSite:
    if option in SlurmSite.model_fields:
        return used.model_copy(update={option: value})
    return used.model_copy(
        update={"additional_parameters": {**used.additional_parameters, option: value}}
    )
