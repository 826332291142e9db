"""(job, site, machine) -> Plan: exactly what will run where.

Pure: reads no file, no environment, no clock.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from launch.environment import BackendName, Folders, Machine
from launch.spec.load import JobSpec, Resources
from launch.spec.site import Site
from launch.spec.yaml_tree import Place, Problem, SpecError
from trainer.config.files.layout import RunDir
from trainer.config.run import RunConfig, RunExecution

# what torchrun waits for its ranks' checkpoint before it kills them; its own default of 30 s has
# lost some
SHUTDOWN_S = 120
# Of one node: a free port of torch's own choice. Without an address torch takes the machine's name,
# which need not resolve.
ONE_NODE = ("--standalone", "--local-addr=127.0.0.1")
SLOW_DISK = 50e6  # bytes a second: a shared disk on a busy day
# where the site names the rest
ALWAYS_EXPORTED = ("HOME", "LANG", "LOGNAME", "PATH", "SLURM_CONF", "USER")


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
        argv = _docker_argv(run, to, placement, env, image, before)
    else:
        argv = _torchrun_argv(to.python, placement, run)
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
        slurm=_slurm_parameters(job, site, placement, config.run_id) if on_slurm else {},
        local_scratch=site.paths.local_scratch if on_slurm else None,
        notes=[*placement.notes, *(_grace_note(job, site) if on_slurm else ())],
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


def _torchrun_argv(python: str, placement: Placement, run: RunDir) -> list[str]:
    rendezvous = (
        [*ONE_NODE]
        if placement.nodes == 1
        else [
            f"--nnodes={placement.nodes}",
            "--node-rank={NODE_RANK}",
            "--master-addr={MASTER_ADDR}",
            "--master-port={MASTER_PORT}",
        ]
    )
    return [
        python,
        "-m",
        "torch.distributed.run",
        *rendezvous,
        f"--nproc-per-node={placement.nproc_per_node}",
        "--max-restarts=0",
        "-m",
        "trainer",
        str(run.config),
    ]


def _docker_argv(
    run: RunDir,
    to: Destination,
    placement: Placement,
    env: dict[str, str],
    image: str,
    before: str | None,
) -> list[str]:
    """`docker run`.

    Directories are mounted at their host paths. -i: the entrypoint stops when our end of stdin
    closes.

    before: the run whose weights it begins with.
    """
    docker = to.site.docker
    variables = {**env, "BATCHYARD_ATTEMPT": "{ATTEMPT}", "HOME": "/tmp"}
    gpus = [f"--gpus={placement.nproc_per_node}"] if placement.device == "cuda" else []
    return [
        docker.client,
        "run",
        "--rm",
        "--interactive",
        "--init",
        f"--name={run.run_id}",
        f"--label=batchyard.run={run.run_id}",
        f"--network={docker.network}",
        # of what asks for the machine's name all the same, where there is no network that would
        # know it
        *(["--hostname=localhost"] if docker.network == "none" else []),
        f"--user={to.user[0]}:{to.user[1]}",
        f"--shm-size={docker.shm_size}",
        "--read-only",
        "--tmpfs=/tmp:exec",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        *gpus,
        *(f"--env={name}={value}" for name, value in variables.items()),
        _mount(run.path),
        _mount(run.code, readonly=True),
        _mount(to.folders.cache, readonly=True),
        *([_mount(run.path.parent / before, readonly=True)] if before else []),
        f"--workdir={run.path}",
        image,
        *_torchrun_argv("python", placement, run),
    ]


def _mount(path: object, *, readonly: bool = False) -> str:
    fields = ["type=bind", f"source={path}", f"target={path}"] + (["readonly"] if readonly else [])
    # --mount takes CSV, so that a comma or a quote in a path stays what it is
    return "--mount=" + ",".join(
        f'"{f.replace(chr(34), chr(34) * 2)}"' if set(f) & set(',"') else f for f in fields
    )


def grace_s(wants: Resources, site: Site) -> int:
    """Seconds before the time limit at which the job is told to stop."""
    return min(site.slurm.grace_s, max(10, wants.timeout_min * 30))


def _grace_note(job: JobSpec, site: Site) -> tuple[str, ...]:
    """Says where a checkpoint, which is written and read back, may take longer than the job has
    from the signal to its end.
    """
    # where nobody can say, nothing is said
    size, has_s = job.train.checkpoint_bytes() or 0, grace_s(job.resources, site)
    need_s = 2 * size / SLOW_DISK
    if need_s <= has_s:
        return ()
    return (
        (
            f"a checkpoint of about {size / 1e9:.1f} GB takes {need_s:.0f} s on a disk of"
            f" {SLOW_DISK / 1e6:.0f} MB/s, and the job is told {has_s} s before its end: raise"
            " slurm.grace_s in the site file, or resources.timeout_min"
        ),
    )


def _slurm_parameters(
    job: JobSpec, site: Site, placement: Placement, run_id: str
) -> dict[str, Any]:
    """submitit's parameters.

    One task a node: torchrun starts the ranks, so the task has the node's CPUs.
    """
    wants, cluster = job.resources, site.slurm
    cpus = wants.cpus_per_task or placement.nproc_per_node
    parameters: dict[str, Any] = {
        "job_name": run_id,
        "nodes": placement.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "time": wants.timeout_min,
        "signal_delay_s": grace_s(wants, site),
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "wckey": None,
        "stderr_to_stdout": True,
        # since 22.05 srun does not inherit --cpus-per-task
        "setup": [
            *(
                ["unset SLURM_EXPORT_ENV  # srun takes along what the lines below set"]
                if cluster.environment is not None
                else []
            ),
            *(["set -e", *cluster.setup, "set +e"] if cluster.setup else []),
            f"export SRUN_CPUS_PER_TASK={cpus}",
        ],
        "srun_args": cluster.srun_args,
        "additional_parameters": {
            "requeue" if cluster.requeue else "no-requeue": True,
            **cluster.additional_parameters,
        },
    }
    if cluster.environment is not None:
        named = ",".join(dict.fromkeys((*ALWAYS_EXPORTED, *cluster.environment)))
        # names alone: a value would stand in the script
        parameters["additional_parameters"].setdefault("export", named)
    if placement.device == "cuda":
        parameters["gpus_per_node"] = wants.gpus_per_node
    if wants.mem_gb is not None:
        parameters["mem"] = f"{round(wants.mem_gb * 1024)}MB"
    # submitit's own wckey is not everybody's
    return {k: v for k, v in parameters.items() if v is not None or k == "wckey"}
