"""The plan is a pure function of (job, site, machine): what would run, held as it is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.backends import arrays, slurm
from launch.environment import BackendName, Machine
from launch.plan import build as planning
from launch.plan.build import Plan
from launch.plan.placement import Destination, has_gpu, place, with_defaults
from launch.spec import load
from launch.spec.folders import Folders
from launch.spec.job import Job
from launch.spec.site import Site
from launch.spec.yaml_tree import SpecError
from launch.submit.write import known_to
from tests import ranks
from tests.cli import PROJECT
from trainer import models
from trainer.config.files.layout import RunDir

CASES = Path(__file__).parent / "cases"
JOB = """
train:
  epochs: 1
  global_batch_size: 100
  data: {name: digits}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd, lr: 0.1}
resources: {gpus_per_node: 8, cpus_per_task: 16, mem_gb: 64.5, timeout_min: 90}
"""
FALLBACK = (
    "fallback: {train: {epochs: 2}, resources: {gpus_per_node: 0, nproc_per_node: 2, cpus_per_task:"
    " 2}}\n"
)
RUN = RunDir(Path("/runs/x-00000000"))
WHERE = Folders(Path("/data"), Path("/cache"), Path("/runs"))


def build(
    tmp_path: Path,
    text: str,
    machine: Machine,
    backend: BackendName = "local",
    site: Site | None = None,
    **given: Any,
) -> Plan:
    (tmp_path / "x.yaml").write_text(text)
    site = site or Site()
    without_gpu = not has_gpu(backend, site, machine)
    job = load.load(
        Job("x", tmp_path / "x.yaml"), given.get("settings", ()), without_gpu=without_gpu
    )
    job = with_defaults(job, site, backend)
    placement = place(job, site, machine, backend, strict=given.get("strict", False))
    config = planning.run_config("x", RUN.run_id, job, placement, None)
    to = Destination(backend, site, WHERE, "/venv/bin/python", (1000, 1001))
    return planning.build(job, config, placement, given.get("run", RUN), to)


def shape(plan: Plan) -> tuple[int, int, str]:
    return plan.nodes, plan.nproc_per_node, plan.device


def test_a_job_of_8_gpus_where_there_are_8_1_and_0(tmp_path: Path) -> None:
    eight = build(tmp_path, JOB + FALLBACK, Machine(8, 64))
    assert (shape(eight), eight.notes, eight.env["OMP_NUM_THREADS"]) == ((1, 8, "cuda"), [], "2")
    one = build(tmp_path, JOB + FALLBACK, Machine(1, 64))
    assert shape(one) == (1, 1, "cuda")
    assert one.notes == ["1 of 8 GPU(s) here: same global batch and micro-batch, more accumulation"]
    none = build(tmp_path, JOB + FALLBACK, Machine(0, 64))
    assert (shape(none), none.notes, none.env["OMP_NUM_THREADS"]) == ((1, 2, "cpu"), [], "1")
    bare = build(tmp_path, JOB, Machine(0, 4))
    assert shape(bare) == (1, 1, "cpu")
    assert bare.notes == [
        "no GPU here and no fallback in the job: 1 rank on the CPU instead of 8 on 8 GPU(s)"
    ]


@pytest.mark.parametrize(
    ("machine", "rounds"),
    [(Machine(8, 8), 1), (Machine(3, 8), 3), (Machine(1, 8), 8), (Machine(0, 8), 8)],
)
def test_fewer_gpus_keep_the_micro_batch_and_accumulate(
    tmp_path: Path, machine: Machine, rounds: int
) -> None:
    (tmp_path / "x.yaml").write_text(JOB)
    job = load.load(Job("x", tmp_path / "x.yaml"), without_gpu=False)
    placement = place(job, Site(), machine, "local")
    config = planning.run_config("x", "x-00000000", job, placement, None)
    assert (config.execution.ranks, config.micro_batch_size()) == (8, 13)
    assert -(-100 // (13 * placement.world_size)) == rounds


@pytest.mark.parametrize("backend", ["local", "docker"])
@pytest.mark.parametrize("gpus", [0, 1])
def test_strict_resources_refuse(tmp_path: Path, backend: BackendName, gpus: int) -> None:
    with pytest.raises(
        SpecError, match=r"--strict-resources: the job asks for 8 GPU\(s\), this machine has"
    ):
        build(tmp_path, JOB, Machine(gpus, 8), backend, strict=True)


def test_a_path_in_which_slurm_opens_no_log_is_refused(tmp_path: Path) -> None:
    """It reads a backslash as an escape: the job failed, and there was no log."""
    run = RunDir(Path("/my\\runs/x-00000000"))
    with pytest.raises(
        SpecError,
        match=r"--runs-dir: /my\\runs/x-00000000 has a backslash, with which Slurm opens no log",
    ):
        build(tmp_path, JOB, Machine(0, 4), "slurm", run=run)
    assert build(tmp_path, JOB, Machine(0, 4), "local", run=run).argv


@pytest.mark.parametrize("backend", ["local", "docker", "slurm"])
def test_a_path_that_parts_pythonpath_is_refused(tmp_path: Path, backend: BackendName) -> None:
    run = RunDir(Path("/lab:a/runs/x-00000000"))
    with pytest.raises(
        SpecError, match=r"--runs-dir: /lab:a/runs/x-00000000 has a colon, which parts"
    ):
        build(tmp_path, JOB, Machine(0, 4), backend, run=run)


def test_slurm_believes_the_site_and_never_the_login_node(tmp_path: Path) -> None:
    assert shape(build(tmp_path, JOB + FALLBACK, Machine(0, 4), "slurm")) == (1, 8, "cuda")
    without = Site.model_validate({"slurm": {"has_gpus": False}})
    assert shape(build(tmp_path, JOB + FALLBACK, Machine(8, 4), "slurm", without)) == (1, 2, "cpu")


def test_a_continued_run_keeps_its_ranks_and_threads(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(JOB)
    job = load.load(Job("x", tmp_path / "x.yaml"), without_gpu=False)
    first = planning.run_config("x", "x-0", job, place(job, Site(), Machine(8, 64), "local"), None)
    later = planning.run_config(
        "x", "x-0", job, place(job, Site(), Machine(0, 2), "local"), first.execution
    )
    assert (later.execution.ranks, later.execution.threads_per_rank, later.execution.device) == (
        8,
        2,
        "cpu",
    )


def test_parity_takes_one_thread_a_rank_and_no_more_ranks_than_shards(tmp_path: Path) -> None:
    text = JOB.replace("train:", "train:\n  parity: bitwise")
    eight = build(tmp_path, text, Machine(8, 64))
    assert (eight.env["OMP_NUM_THREADS"], eight.env["CUBLAS_WORKSPACE_CONFIG"]) == ("1", ":4096:8")
    one = build(tmp_path, text, Machine(0, 64))
    assert one.env["OMP_NUM_THREADS"] == "1" and "CUBLAS_WORKSPACE_CONFIG" not in one.env
    assert (
        build(tmp_path, text + "execution: {threads_per_rank: 3}\n", Machine(8, 64)).env[
            "OMP_NUM_THREADS"
        ]
        == "3"
    )
    deterministic = build(
        tmp_path, JOB.replace("train:", "train:\n  deterministic: true"), Machine(8, 64)
    )
    assert (deterministic.env["OMP_NUM_THREADS"], deterministic.env["CUBLAS_WORKSPACE_CONFIG"]) == (
        "2",
        ":4096:8",
    )
    assert "CUBLAS_WORKSPACE_CONFIG" not in build(tmp_path, JOB, Machine(8, 64)).env
    with pytest.raises(SpecError) as caught:
        build(tmp_path, text, Machine(8, 64), settings=("train.parity_shards=4",))
    assert (
        str(caught.value)
        == "resources: train.parity_shards: 4 shards are work for 4 ranks, the job takes 8: raise"
        " it or take fewer ranks"
    )


def test_the_local_command(tmp_path: Path) -> None:
    assert build(tmp_path, JOB, Machine(8, 64)).argv == [
        "/venv/bin/python",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=8",
        "--max-restarts=0",
        "-m",
        "trainer",
        "/runs/x-00000000/config.json",
    ]


def test_the_docker_command(tmp_path: Path) -> None:
    assert build(tmp_path, JOB, Machine(2, 64), "docker").argv == [
        "docker",
        "run",
        "--rm",
        "--interactive",
        "--init",
        "--name=x-00000000",
        "--label=batchyard.run=x-00000000",
        "--network=none",
        "--hostname=localhost",
        "--user=1000:1001",
        "--shm-size=2g",
        "--read-only",
        "--tmpfs=/tmp:exec",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--gpus=2",
        "--env=OMP_NUM_THREADS=8",
        "--env=PYTHONPATH=/runs/x-00000000/code/.packages",
        "--env=PYTHONSAFEPATH=1",
        "--env=PYTHONUNBUFFERED=1",
        "--env=TORCH_ELASTIC_SHUTDOWN_TIMEOUT=120",
        "--env=BATCHYARD_ATTEMPT={ATTEMPT}",
        "--env=HOME=/tmp",
        "--mount=type=bind,source=/runs/x-00000000,target=/runs/x-00000000",
        "--mount=type=bind,source=/runs/x-00000000/code,target=/runs/x-00000000/code,readonly",
        "--mount=type=bind,source=/cache,target=/cache,readonly",
        "--workdir=/runs/x-00000000",
        "batchyard:cuda",
        "python",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        "--nproc-per-node=2",
        "--max-restarts=0",
        "-m",
        "trainer",
        "/runs/x-00000000/config.json",
    ]


def test_the_slurm_script(tmp_path: Path) -> None:
    site = Site.model_validate(
        {
            "slurm": {
                "partition": "gpu",
                "account": "vision",
                "qos": "low",
                "setup": ["module load cuda"],
                "srun_args": ["--cpu-bind=none"],
                "additional_parameters": {"mail-type": "END"},
            }
        }
    )
    plan = build(
        tmp_path,
        JOB.replace("gpus_per_node: 8", "gpus_per_node: 8, nodes: 2"),
        Machine(0, 4),
        "slurm",
        site,
    )
    assert plan.argv[3:8] == [
        "--nnodes=2",
        "--node-rank={NODE_RANK}",
        "--master-addr={MASTER_ADDR}",
        "--master-port={MASTER_PORT}",
        "--nproc-per-node=8",
    ]
    assert (
        slurm.script(RUN, plan)
        == """#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=8
#SBATCH --job-name=x-00000000
#SBATCH --mail-type=END
#SBATCH --mem=66048MB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --open-mode=append
#SBATCH --output=/runs/x-00000000/slurm/%j_0_log.out
#SBATCH --partition=gpu
#SBATCH --qos=low
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=90

# setup
set -e
module load cuda
set +e
export SRUN_CPUS_PER_TASK=16

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /runs/x-00000000/slurm/%j_%t_log.out --cpu-bind=none env \
PYTHONPATH=/runs/x-00000000/code/.packages /venv/bin/python -P -m launch.node /runs/x-00000000 --slurm
"""
    )


def test_a_cluster_has_defaults_and_takes_along_what_the_site_names(tmp_path: Path) -> None:
    cluster = {
        "resources": {"cpus_per_task": 12, "mem_gb": 48.0, "timeout_min": 240},
        "environment": ["HTTPS_PROXY", "HOME"],
    }
    site = Site.model_validate({"slurm": cluster, "paths": {"local_scratch": "$TMPDIR/data"}})
    text = JOB.partition("resources:")[0] + "resources: {timeout_min: 30}\n"
    plan = build(tmp_path, text, Machine(0, 4), "slurm", site)
    script = slurm.script(RunDir(tmp_path / "x-00000000"), plan)
    for line in (
        "--cpus-per-task=12",
        "--mem=49152MB",
        "--time=30",
        "--export=HOME,LANG,LOGNAME,PATH,SLURM_CONF,USER,HTTPS_PROXY",
    ):
        assert f"#SBATCH {line}\n" in script
    assert script.index("unset SLURM_EXPORT_ENV") < script.index("srun")
    assert (plan.local_scratch, plan.env["OMP_NUM_THREADS"]) == ("$TMPDIR/data", "12")
    here = build(tmp_path, text, Machine(0, 4), "local", site)
    assert (here.local_scratch, here.slurm, here.env["OMP_NUM_THREADS"]) == (None, {}, "4")
    assert "--export" not in slurm.script(
        RunDir(tmp_path / "x-00000000"), build(tmp_path, text, Machine(0, 4), "slurm")
    )


def test_the_site_example_is_right_and_holds_the_defaults() -> None:
    from launch.spec import site as sites

    found, used = sites.load(PROJECT / "launch" / "site.example.yaml", Path("/"))
    assert used is not None and found == Site()


def test_where_the_site_is_looked_for(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launch.spec import site as sites

    named, beside = tmp_path / "named.yaml", tmp_path / "site.yaml"
    in_home = home / ".config/batchyard/site.yaml"
    in_home.parent.mkdir(parents=True)
    assert sites.load(None, tmp_path) == (Site(), None)
    # each goes before the one before it
    for path, runs in ((beside, "/a"), (in_home, "/b"), (named, "/c")):
        path.write_text(f"paths: {{runs: {runs}}}\n")
        found, used = sites.load(named if path == named else None, tmp_path)
        assert (found.paths.runs, used) == (runs, path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    assert sites.load(None, tmp_path)[1] == beside
    named.write_text("backend: slrm\npath: {runs: /x}\n")
    with pytest.raises(SpecError) as caught:
        sites.load(named, tmp_path)
    assert str(caught.value).splitlines() == [
        (
            f"{named}:1:10: backend: found 'slrm'; expected one of: local, docker, slurm; did you"
            " mean 'slurm'?"
        ),
        (
            f"{named}:2:1: path: unknown key; did you mean 'paths'? known: backend, python, paths,"
            " slurm, docker, trusted"
        ),
    ]


def test_a_continued_run_is_not_told_settings_that_its_frozen_code_does_not_know() -> None:
    before = {
        "train": {"epochs": 3, "data": {"name": "digits"}},
        "execution": {"log_every_steps": 5},
    }
    now = {
        "train": {"epochs": 3, "data": {"name": "digits", "validation": None}, "max_steps": None},
        "execution": {"log_every_steps": 9, "hang_limit_s": 600.0},
        "sweep": None,
    }
    assert known_to(before, now) == {"train": before["train"], "execution": {"log_every_steps": 9}}
    assert known_to(None, now) == now


def test_a_grace_that_is_too_short_for_the_checkpoint_is_told(tmp_path: Path) -> None:
    # 401 million numbers
    big = JOB.replace("{name: mlp, hidden: [8]}", "{name: mlp, hidden: [20000, 20000]}")
    (note,) = build(
        tmp_path, big, Machine(0, 4), "slurm", Site.model_validate({"slurm": {"grace_s": 30}})
    ).notes
    assert note.startswith(
        "a checkpoint of about 1.6 GB takes 64 s on a disk of 50 MB/s, and the job is told 30 s"
        " before its end"
    )
    assert build(tmp_path, big, Machine(0, 4), "slurm").notes == []  # 120 s
    assert "checkpoint" not in str(build(tmp_path, big, Machine(0, 4), "local").notes)


@pytest.mark.parametrize(
    ("train", "numbers"),
    [
        ({"data": {"name": "cifar10"}, "model": {"name": "resnet"}}, 11_173_962),
        ({"model": {"name": "resnet", "width": 4, "blocks": [1, 2]}}, None),
        ({"data": {"name": "cifar10"}, "model": {"name": "lenet"}}, 62_006),
        ({"data": {"name": "fashion_mnist"}, "model": {"name": "mlp", "hidden": [30, 7]}}, None),
    ],
)
def test_the_size_of_a_model_is_known_without_torch(
    train: dict[str, Any], numbers: int | None
) -> None:
    config = ranks.config(**train).train
    given = config.data.pictures()
    model = models.build(
        config.model, given.classes or 0, given.channels, (given.height, given.width)
    )
    assert sum(p.numel() for p in model.parameters()) == config.model.parameters(given)
    assert numbers in (None, config.model.parameters(given))
    assert config.checkpoint_bytes() == 8 * config.model.parameters(given)  # SGD with momentum


@pytest.mark.parametrize(
    ("points", "largest", "at_once", "expected"),
    [
        (20, 1001, 4, [(0, 20, 4, None)]),
        (30, 11, 2, [(0, 10, 1, None), (10, 20, 1, None), (20, 30, 1, 0)]),
        (30, 11, 8, [(0, 10, 3, None), (10, 20, 3, None), (20, 30, 2, None)]),
        (5, 2, 1, [(0, 1, 1, None), (1, 3, 1, 0), (3, 5, 1, 1)]),
        (1, 1, 256, [(0, 1, 256, None)]),
    ],
)
def test_a_sweep_is_cut_into_arrays_that_share_its_limit(
    points: int, largest: int, at_once: int, expected: Any
) -> None:
    found = arrays.pieces(points, largest, at_once)
    assert [(p.start, p.stop, p.at_once, p.after) for p in found] == expected
    assert all(p.stop - p.start <= largest for p in found)
    lanes = [p for p in found if p.after is None]
    assert sum(p.at_once for p in lanes) == at_once
