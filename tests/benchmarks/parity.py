"""What `train.parity: bitwise` costs a step, beside DDP with the same batch on the same ranks, one
thread each.

`python -m tests.benchmarks.parity` prints one JSON row for each piece of work; exit status 1 where
one misses its bar. runs: each run's pair of seconds a step (work, against); ratio: of the medians.
The two alternate, so that a slow moment meets both.
"""

from __future__ import annotations

import json
import platform
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests import ranks
from trainer.config.files.json_files import read_jsonl
from trainer.datasets.prepare import prepare

RUNS = 3
RANKS = 2
PARITY = {"parity": "bitwise"}
SMALL = {  # jobs/digits.yaml, whose step takes milliseconds: what is paid for the calls
    "epochs": 3,
    "global_batch_size": 64,
    "data": ranks.DIGITS,
    "model": {"name": "resnet", "width": 16, "blocks": [1, 1, 1], "dropout": 0.1},
}
LARGE = {  # ResNet-18 on CIFAR's size: what is paid for smaller pieces and 11 million parameters
    "epochs": 1,
    "global_batch_size": 64,
    "data": {"name": "synthetic", "samples": 256},
    "model": {"name": "resnet", "width": 64, "blocks": [2, 2, 2, 2]},
}
WORK: list[tuple[str, dict[str, Any], dict[str, Any], int, str]] = [
    ("a 77,000-parameter ResNet on digits, 8 shards of 8", SMALL, PARITY, 23, "<=4.5"),
    (
        "a 77,000-parameter ResNet on digits, 4 shards of 16",
        SMALL,
        {**PARITY, "parity_shards": 4},
        23,
        "<=2.5",
    ),
    ("ResNet-18 on 32x32, 8 shards of 8", LARGE, PARITY, 1, "<=1.6"),
    ("ResNet-18 on 32x32, 4 shards of 16", LARGE, {**PARITY, "parity_shards": 4}, 1, "<=1.4"),
]


def step_s(folder: Path, prepared: dict[str, Any], log_every_steps: int, **train: Any) -> float:
    """The median seconds of a step over the log rows of one run but the first, which holds what is
    done only once.
    """
    config = ranks.config(ranks=RANKS, execution={"log_every_steps": log_every_steps}, **train)
    run = ranks.make_run(folder, config, prepared)
    if ranks.train(run, "local-1", RANKS):
        sys.exit(ranks.logs(run))
    return statistics.median(row["step_time_s"] for row in read_jsonl(run.timing)[1:])


def main() -> None:
    missed = False
    for work, train, parity, every, bar in WORK:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            prepared = prepare(ranks.config(**train).train.data, folder, folder)
            runs = []
            for number in range(RUNS):
                pair = [
                    step_s(folder / f"{number}-{side}", prepared, every, **train, **more)
                    for side, more in (("parity", parity), ("ddp", {}))
                ]
                runs.append(pair)
        ratio = statistics.median(p for p, _ in runs) / statistics.median(d for _, d in runs)
        missed = missed or ratio > float(bar[2:])
        row = {
            "work": f"parity: {work}, {RANKS} ranks",
            "against": "DDP, half the batch a rank",
            "ratio": round(ratio, 3),
            "bar": bar,
            "runs": runs,
            "machine": f"{platform.machine()}, 1 thread a rank",
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }
        print(json.dumps(row), flush=True)
    sys.exit(missed)


if __name__ == "__main__":
    main()
