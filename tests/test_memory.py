"""How much memory the verbs take where there is much to look at: they run on login nodes, which
many users share.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from launch.spec import load
from launch.spec.job import Job
from tests.cli import BATCHYARD, PROJECT, Shell
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome
from trainer.config.run import RunConfig

JOB = """
train:
  epochs: 2
  global_batch_size: 64
  data: {name: digits}
  model: {name: mlp, hidden: [8]}
  optimizer: {name: sgd, lr: 0.1}
"""


# A process of its own between this one and the command: Linux counts what a process had before it
# became another program.
MEASURE = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[2:], stderr=subprocess.STDOUT).returncode
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status)
"""


def peak_mb(shell: Shell, *argv: str, code: int = 0) -> tuple[float, str]:
    """What a command took at most, and what it printed."""
    taken = shell.runs.parent / "kilobytes"
    where = [] if argv[0] == "check" else ["--runs-dir", str(shell.runs)]
    command = [*BATCHYARD, argv[0], *where, *argv[1:]]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, str(taken), *command],
        cwd=shell.cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return int(taken.read_text()) / 1024, done.stdout


def test_a_sweep_of_ten_thousand_points_is_checked_in_little_memory(tmp_path: Path) -> None:
    """Of numbers, of mappings (whose places are many), and where every point is wrong."""
    shell = Shell(tmp_path, cwd=tmp_path)
    numbers = "\n".join(f"      - {0.1 + i / 1e5:.5f}" for i in range(10_000))
    (tmp_path / "numbers.yaml").write_text(
        f"{JOB}sweep:\n  grid:\n    train.optimizer.lr:\n{numbers}\n"
    )
    mappings = "\n".join(f"      - {{name: sgd, lr: {0.1 + i / 1e5:.5f}}}" for i in range(3_000))
    (tmp_path / "mappings.yaml").write_text(
        f"{JOB}sweep:\n  grid:\n    train.optimizer:\n{mappings}\n"
    )
    (tmp_path / "wrong.yaml").write_text(
        f"{JOB}sweep:\n  grid:\n    train.optimizer.lr:\n{numbers.replace('- ', '- -')}\n"
    )

    taken, printed = peak_mb(shell, "check", "numbers.yaml", "mappings.yaml")
    assert (
        "numbers.yaml: right, 10000 points" in printed
        and "mappings.yaml: right, 3000 points" in printed
    )
    assert taken < 200
    taken, printed = peak_mb(shell, "check", "wrong.yaml", code=2)
    assert (
        "sweep.grid.train.optimizer.lr.0: found -0.1; expected more than 0" in printed
        and taken < 200
    )


def test_results_do_not_hold_all_runs_in_memory(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(JOB)
    train = load.load(Job("small", tmp_path / "small.yaml"), without_gpu=True).train
    rows = [
        {
            "kind": "train",
            "global_step": step,
            "epoch": 1 + step // 5001,
            "loss": 1.5,
            "accuracy": 0.5,
            "lr": 0.1,
            "samples": 64,
        }
        for step in range(1, 10_001)
    ]
    rows.append(
        {
            "kind": "eval",
            "split": "test",
            "global_step": 10_000,
            "epoch": 2,
            "loss": 1.0,
            "accuracy": 0.75,
        }
    )
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(40):
        of_seed = train.model_copy(update={"seed": seed})
        run = RunDir(tmp_path / "runs" / f"small-{of_seed.digest()[:8]}")
        execution = {"ranks": 1, "threads_per_rank": 1, "device": "cpu"}
        config = {"job": "small", "run_id": run.run_id, "train": of_seed, "execution": execution}
        write_json(run.config, RunConfig.model_validate(config).model_dump(mode="json"))
        shutil.copy(metrics, run.metrics)
        write_json(run.attempt("local-1").record, {"started": 1.0, "ended": 2.0})
        ended = Outcome(
            "completed", "completed", "local-1", "trainer rank 0", 10_000, test_accuracy=0.75
        )
        ended.write(run.attempt("local-1").outcome)
        ended.write(run.outcome)

    taken, printed = peak_mb(Shell(tmp_path / "runs", cwd=tmp_path), "results", "small.yaml")
    assert "small.yaml: 40 seeds, 2 epochs" in printed and "75.00 ± 0.00 %" in printed
    assert taken < 200
