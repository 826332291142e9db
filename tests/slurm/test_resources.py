"""A job's ranks get what it was given, and no more: cores, memory, GPUs, the variables that the
site names, the node's own disk.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.drill.kills import of_run
from tests.cli import SHORT, Shell, outcome, step_reached, wait_for
from tests.slurm.cluster import Options
from tests.slurm.conftest import Slurm, booted
from tests.slurm.test_digits import TWO_NODES, job_id, wait_for_end
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir

pytestmark = pytest.mark.long
ONE_RANK = (
    "--set",
    "resources.nproc_per_node=1",
    "--set",
    "resources.cpus_per_task=1",
    "--set",
    "resources.mem_gb=2",
)


@pytest.fixture(scope="module")
def bound(cluster_dir: Path) -> Iterator[Slurm]:
    """A cluster that binds a job to its cores, its memory and its devices."""
    with booted(Path(f"{cluster_dir}-bound"), Options(constrain=True)) as found:
        yield found


@pytest.fixture
def typed(bound: Slurm, tmp_path: Path) -> Iterator[Shell]:
    yield Shell(
        tmp_path / "runs", env=(*bound.env.items(), ("XDG_CACHE_HOME", str(tmp_path / "cache")))
    )
    bound.clean()


def site(tmp_path: Path, text: str) -> tuple[str, str]:
    (tmp_path / "site.yaml").write_text(text)
    return "--site", str(tmp_path / "site.yaml")


def rank_of(run: RunDir) -> tuple[int, dict[str, str]]:
    """pid and environment of the run's only rank."""
    (found,) = [
        (pid, env)
        for pid, argv, env in of_run(run)
        if "RANK" in env and "torch.distributed.run" not in argv
    ]
    return found


def test_two_jobs_on_a_node_have_cores_of_their_own_and_the_memory_that_they_asked_for(
    typed: Shell, bound: Slurm, tmp_path: Path
) -> None:
    where = site(tmp_path, "backend: slurm\nslurm: {resources: {mem_gb: 1.5}}\n")
    node = (*SHORT, *ONE_RANK[:4], *where)
    for seed in (0, 1):
        typed.run(
            "submit", "digits", *node, "--set", f"train.seed={seed}", "--set", "train.epochs=400"
        )
    runs = [RunDir(p.parent) for p in sorted(typed.runs.glob("*/config.json"))]
    wait_for("both at step 5", lambda: all(step_reached(run, 5)() for run in runs))
    for run in runs:
        pid, _ = rank_of(run)
        cores = os.sched_getaffinity(pid)
        assert len(cores) == 1 and bound.job(job_id(run))["NumCPUs"] == "1"
        memory = next(
            line
            for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
            if ":memory:" in line
        ).split(":")[2]
        limit = int(
            Path(
                f"/sys/fs/cgroup/memory{memory.split('/step_')[0]}/memory.limit_in_bytes"
            ).read_text()
        )
        assert limit == 1536 * 2**20, (memory, limit)
    by_node: dict[str, list[set[int]]] = {}
    for run in runs:
        by_node.setdefault(bound.job(job_id(run))["NodeList"], []).append(
            os.sched_getaffinity(rank_of(run)[0])
        )
    assert all(not set.intersection(*cores) for cores in by_node.values() if len(cores) > 1)


def test_a_job_sees_the_gpus_that_it_was_given(typed: Shell, bound: Slurm, tmp_path: Path) -> None:
    """There is no driver behind the devices here, so that the job fails as infrastructure: what it
    saw is kept by its Python.
    """
    python = tmp_path / "python"
    record = (
        '[ -z "$SLURM_STEP_ID" ] || { env; for d in'
        f" {bound.cluster.dir}/dev/$SLURMD_NODENAME-*; do "
    )
    record += f"head -c0 $d 2>&1 || true; done; }} > {tmp_path}/seen.$SLURM_RESTART_COUNT"
    python.write_text(f'#!/bin/bash\n{record}\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    where = site(tmp_path, f"backend: slurm\npython: {python}\n")
    typed.run("submit", "digits", *SHORT, *ONE_RANK, "--set", "resources.gpus_per_node=1", *where)
    run = typed.only_run()
    wait_for("its first end", lambda: run.all_attempts() and run.all_attempts()[0].outcome.exists())
    seen = (tmp_path / "seen.").read_text()
    assert re.search(r"^CUDA_VISIBLE_DEVICES=\d$", seen, re.M)
    denied = [line for line in seen.splitlines() if "Operation not permitted" in line]
    assert len(denied) == 1, seen[-600:]  # of the node's two devices
    bound.run("scancel", job_id(run))
    assert (outcome(run).verdict, "GPU" in str(outcome(run).cause)) == ("infrastructure", True)


def test_a_job_takes_along_what_the_site_names_and_reads_its_data_from_each_nodes_disk(
    typed: Shell, bound: Slurm, tmp_path: Path
) -> None:
    where = site(
        tmp_path,
        f"backend: slurm\npaths: {{local_scratch: {tmp_path}/disk-$SLURMD_NODENAME}}\n"
        "slurm: {environment: [WANTED], setup: ['export FROM_SETUP=1']}\n",
    )
    shell = Shell(typed.runs, env=(*typed.env, ("WANTED", "a, b"), ("UNWANTED", "1")))
    shell.run("submit", "digits", *SHORT, *ONE_RANK, "--set", "train.epochs=40", *TWO_NODES, *where)
    run = shell.only_run()
    wait_for("step 5", step_reached(run, 5))
    ranks = [
        env for _, argv, env in of_run(run) if "RANK" in env and "torch.distributed.run" not in argv
    ]
    assert len(ranks) == 2
    for env in ranks:
        assert (env.get("WANTED"), env.get("FROM_SETUP"), "UNWANTED" in env) == ("a, b", "1", False)
        assert env["BATCHYARD_PREPARED"].startswith(f"{tmp_path}/disk-{env['SLURMD_NODENAME']}/")
    own = Path(ranks[0]["BATCHYARD_PREPARED"])
    assert (own / "manifest.json").read_bytes() == (
        Path(read_json(run.data_record)["path"]) / "manifest.json"
    ).read_bytes()
    assert len(list(tmp_path.glob("disk-*"))) == 2
    wait_for_end(run)
