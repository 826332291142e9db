"""(job, site, machine) -> Plan: exactly what will run where.

Pure: reads no file, no environment, no clock.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from launch.environment import BackendName
from launch.plan.command import SHUTDOWN_S, docker_argv, torchrun_argv
from launch.plan.placement import Destination, Placement
from launch.plan.sbatch import grace_note, slurm_parameters
from launch.spec.job import JobSpec
from launch.spec.yaml_tree import Place, Problem, SpecError
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig, RunExecution


@dataclass(frozen=True)
class Plan:
    """What a backend runs.

    In `argv`, {ATTEMPT}, {NODE_RANK}, {MASTER_ADDR} and {MASTER_PORT} are filled in on the node.

    env: variables with their values, which are no secrets; everything else is inherited. slurm:
    submitit's parameters. local_scratch: the folder of a node's own disk that the prepared data is
    copied to, its variables not yet expanded. after: the directory of the run that must be
    completed before.
    """

    backend: BackendName
    run_id: str
    nodes: int
    nproc_per_node: int
    device: Literal["cpu", "cuda"]
    argv: list[str]
    env: dict[str, str]
    python: str
    image: str | None = None
    slurm: dict[str, Any] = field(default_factory=dict)
    local_scratch: str | None = None
    after: str | None = None
    notes: list[str] = field(default_factory=list)

    def command(self) -> str:
        """The command as a person would type it, its variables in front."""
        return " ".join(
            [*(f"{k}={shlex.quote(v)}" for k, v in self.env.items()), shlex.join(self.argv)]
        )


def run_config(
    name: str,
    run_id: str,
    job: JobSpec,
    placement: Placement,
    fixed: RunExecution | None,
    sweep: str | None = None,
) -> RunConfig:
    """config.json. fixed: the execution of the run's first submit, whose ranks and threads stay for
    its whole life.

    sweep: the id of the sweep that the run is a point of. Parity takes one thread a rank, unless
    the job names a number: it must not depend on the ranks. Raises SpecError where parity has fewer
    shards than the job asks for ranks.
    """
    wants, shards = job.resources, job.train.parity_shards
    if job.train.parity and placement.world_size > shards:
        message = (
            f"{shards} shards are work for {shards} ranks, the job takes {placement.world_size}:"
            " raise it or take fewer ranks"
        )
        raise SpecError([Problem(Place("resources"), ("train", "parity_shards"), message)])
    share = max(1, (placement.cpus or wants.ranks_per_node()) // placement.nproc_per_node)
    per_rank = 1 if job.train.parity else share
    kept = {
        "ranks": fixed.ranks if fixed else wants.nodes * wants.ranks_per_node(),
        "threads_per_rank": (
            fixed.threads_per_rank if fixed else job.execution.threads_per_rank or per_rank
        ),
    }
    execution = RunExecution(
        **{
            **job.execution.model_dump(),
            **kept,
            "device": placement.device,
            "tracking": job.tracking,
        }
    )
    return RunConfig(job=name, run_id=run_id, sweep=sweep, train=job.train, execution=execution)


def build(
    job: JobSpec, config: RunConfig, placement: Placement, run: RunDir, to: Destination
) -> Plan:
    """The plan of one run. Raises SpecError."""
    site, on_slurm = to.site, to.backend == "slurm"
    _refuse_odd_path(run, to.backend)
    env = {
        "OMP_NUM_THREADS": str(config.execution.threads_per_rank),
        "PYTHONPATH": str(run.packages),  # the frozen code, before Python starts
        "PYTHONSAFEPATH": "1",  # `-m` would put the working folder before Python's own modules
        "PYTHONUNBUFFERED": "1",
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(SHUTDOWN_S),
    }
    if config.train.repeatable() and placement.device == "cuda":
        # without it torch's deterministic algorithms refuse cuBLAS
        env["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    image = None
    before = config.train.weights.run if config.train.weights else None
    if to.backend == "docker":
        image = (
            job.container.image
            or site.docker.image
            or f"batchyard:{'cuda' if placement.device == 'cuda' else 'cpu'}"
        )
        argv = docker_argv(run, to, placement, env, image, before)
    else:
        argv = torchrun_argv(to.python, placement, run)
    return Plan(
        backend=to.backend,
        run_id=config.run_id,
        nodes=placement.nodes,
        nproc_per_node=placement.nproc_per_node,
        device=placement.device,
        argv=argv,
        env=env,
        python=to.python,
        image=image,
        slurm=slurm_parameters(job, site, placement, config.run_id) if on_slurm else {},
        local_scratch=site.paths.local_scratch if on_slurm else None,
        notes=[*placement.notes, *(grace_note(job, site) if on_slurm else ())],
    )


def _refuse_odd_path(run: RunDir, backend: BackendName) -> None:
    """Raises SpecError where no attempt could start in the run's directory."""
    problem = None
    if ":" in str(run.path):
        problem = "has a colon, which parts the folders of PYTHONPATH: no rank would find its code"
    elif backend == "slurm" and "\\" in str(run.path):
        problem = (
            "has a backslash, with which Slurm opens no log: the job would fail and leave no word"
        )
    if problem:
        message = (
            f"{run.path} {problem}; name a folder without one by --runs-dir, or by paths.runs in"
            " the site file"
        )
        raise SpecError([Problem(Place("--runs-dir"), (), message)])


def with_older_code(plan: Plan, run: RunDir) -> Plan:
    """The plan of a run that keeps code which was frozen without `run.packages`: all of that code
    is on the path.
    """
    before, now = str(run.packages), str(run.code)
    env = {name: value.replace(before, now) for name, value in plan.env.items()}
    return replace(plan, env=env, argv=[argument.replace(before, now) for argument in plan.argv])
