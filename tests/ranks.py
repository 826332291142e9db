"""Runs the trainer on W gloo ranks without the launcher, each rank a process of its own."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.config.run import RunConfig

DIGITS = {"name": "digits", "random_crop_padding": 1}
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.ranks", "trainer.train", "torch._dynamo", "PIL.Image"])
RESNET = {"name": "resnet", "width": 4, "blocks": [1, 1], "dropout": 0.2}


def config(
    run_id: str = "t-00000000",
    *,
    ranks: int = 1,
    execution: dict[str, Any] | None = None,
    **train: Any,
) -> RunConfig:
    """A small run with BatchNorm, dropout, momentum and augmentation. 1,437 samples: the last batch
    does not divide.
    """
    values = {
        "epochs": 2,
        "global_batch_size": 100,
        "data": DIGITS,
        "model": RESNET,
        "optimizer": {
            "name": "sgd",
            "lr": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,
        },
        "schedule": {"name": "cosine", "warmup_epochs": 0.5},
        **train,
    }
    how = {
        "ranks": ranks,
        "threads_per_rank": 1,
        "device": "cpu",
        "log_every_steps": 4,
        "tracking": {"mode": "disabled"},
    }
    return RunConfig.model_validate(
        {"job": "t", "run_id": run_id, "train": values, "execution": {**how, **(execution or {})}}
    )


def make_run(folder: Path, configuration: RunConfig, prepared: dict[str, Any]) -> RunDir:
    """A run directory as submit makes it, without code and plan."""
    run = RunDir(folder / configuration.run_id)
    write_json(run.config, configuration.model_dump(mode="json"))
    write_json(run.data_record, prepared)
    return run


def train(run: RunDir, attempt: str, world_size: int, **environment: str) -> int:
    """One attempt on `world_size` ranks, to its end.

    Returns the first exit status that is not zero, else zero.
    """
    started = begin(run, attempt, world_size, **environment)
    code = exit_status(started)
    assert code is not None, logs(run)
    return code


def exit_status(started: list[BaseProcess]) -> int | None:
    """Waits for these ranks.

    Returns as `train` does, or None where one did not end in time.
    """
    try:
        for rank in started:
            rank.join(300)
        codes = [rank.exitcode for rank in started]
    finally:
        for rank in started:
            rank.kill()
    if None in codes:
        return None
    return next((code for code in codes if code), 0)


def completed(
    folder: Path, prepared: dict[str, Any], world_size: int = 1, **settings: Any
) -> RunDir:
    """A run in `folder` after one attempt that nothing stopped."""
    run = make_run(folder, config(ranks=world_size, **settings), prepared)
    assert train(run, "local-1", world_size) == 0, logs(run)
    assert outcome(run, "local-1").status == "completed", logs(run)
    return run


def outcome(run: RunDir, attempt: str) -> Outcome:
    found = Outcome.read(run.attempt(attempt).outcome)
    assert found is not None, logs(run)
    return found


def begin(run: RunDir, attempt: str, world_size: int, **environment: str) -> list[BaseProcess]:
    """Starts an attempt: its ranks in their order."""
    run.attempt(attempt).path.mkdir(parents=True, exist_ok=True)
    group = [
        {**variables, "BATCHYARD_ATTEMPT": attempt, **environment}
        for variables in one_group(world_size)
    ]
    return [start(_rank, str(run.config), variables) for variables in group]


def start(target: Any, *arguments: Any) -> BaseProcess:
    """Runs a function in a process that is forked from one that has torch loaded: it starts in a
    tenth of a second.
    """
    process = SERVER.Process(target=target, args=arguments)
    process.start()
    return process


def run_module(name: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m NAME ARGUMENTS` in a process that is forked from one that has torch loaded; what
    it prints passes through files in `folder`.
    """
    out, err = folder / "stdout", folder / "stderr"
    process = start(_module, [name, *arguments], out, err)
    code = exit_status([process])
    assert code is not None, f"{name} did not end in time"
    return subprocess.CompletedProcess([name, *arguments], code, out.read_text(), err.read_text())


def _module(argv: list[str], out: Path, err: Path) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    sys.argv = argv
    runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def _rank(config: str, environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from trainer.train import main

    try:
        main(config)
    finally:
        # as an interpreter does at its end, and multiprocessing's processes do not
        atexit._run_exitfuncs()


def one_group(world_size: int) -> list[dict[str, str]]:
    """The environment of each rank of a new group, as torchrun sets it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    where = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(world_size),
        "OMP_NUM_THREADS": "1",
    }
    return [
        {**os.environ, **where, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        for rank in range(world_size)
    ]


def spawn(arguments: list[str], world_size: int, **environment: str) -> int:
    """Runs a fresh Python with these arguments as each of `world_size` ranks of one group.

    Returns as `train` does.
    """
    ranks = [
        subprocess.Popen(
            [sys.executable, *arguments], env={**variables, **environment}, stdin=subprocess.DEVNULL
        )
        for variables in one_group(world_size)
    ]
    try:
        codes = [rank.wait(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return next((code for code in codes if code), 0)


def set_execution(run: RunDir, **changes: Any) -> None:
    """What a resubmission with other `execution` settings writes."""
    found = read_json(run.config)
    found["execution"].update(changes)
    write_json(run.config, found)


def logs(run: RunDir) -> str:
    """Everything that the ranks printed, for a failing assertion."""
    return "\n".join(
        f"--- {p}\n{p.read_text()}" for p in sorted(run.path.glob("attempts/*/rank-*.log"))
    )
