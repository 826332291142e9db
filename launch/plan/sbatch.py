"""The parameters of a plan's Slurm job, and the time that a preempted job is given."""

from __future__ import annotations

from typing import Any

from launch.plan.placement import Placement
from launch.spec.job import JobSpec, Resources
from launch.spec.site import Site

SLOW_DISK = 50e6  # bytes a second: a shared disk on a busy day


# where the site names the rest
ALWAYS_EXPORTED = ("HOME", "LANG", "LOGNAME", "PATH", "SLURM_CONF", "USER")


def grace_s(wants: Resources, site: Site) -> int:
    """Seconds before the time limit at which the job is told to stop."""
    return min(site.slurm.grace_s, max(10, wants.timeout_min * 30))


def grace_note(job: JobSpec, site: Site) -> tuple[str, ...]:
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


def slurm_parameters(job: JobSpec, site: Site, placement: Placement, run_id: str) -> dict[str, Any]:
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
