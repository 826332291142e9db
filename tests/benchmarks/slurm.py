"""What submitting and looking cost on a real cluster (root, Debian's Slurm packages), each beside
the plainest way to do it.

`python -m tests.benchmarks.slurm [POINTS]` boots a cluster whose partition starts nothing and
prints one JSON row for each piece of work; exit status 1 where one misses its bar. runs: pairs of
seconds (work, against), which alternate; ratio: of the medians.

`map_array` and the walk run in programs of their own, as ours do: both sides pay for Python and its
imports, and both find their modules compiled, as a person's second command does. status is measured
over points that wait, whose directories are nearly empty, and over runs that have ended, which are
names of the files of one. ext4 is slow to make files for minutes after many were removed, for both
sides: a quiet disk shows the least favourable ratio. A loop of `executor.submit` is measured over
LOOP jobs and counted for all points: it takes the same time for each of them.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import submitit

from tests.cli import PROJECT
from tests.slurm.conftest import Slurm, booted

RUNS, LOOP, LOOKED_AT = 5, 40, 5000
SWEEP = """\
description: points of a benchmark, none of which begins
extends: {digits}
sweep:
  random:
    n: {points}
    seed: {seed}
    ranges: {{train.optimizer.lr: {{low: 1.0e-6, high: 0.9}}, train.seed: {{low: 0, high: 10000000}}}}
"""


MAP_ARRAY = """\
import sys
import submitit

def nothing(number):
    return number

executor = submitit.SlurmExecutor(sys.argv[1])
executor.update_parameters(time=10, array_parallelism=4)
executor.map_array(nothing, range(int(sys.argv[2])))
"""


def nothing(number: int) -> int:
    return number


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


class Bench:
    """One folder of jobs and runs, submitted to one cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        shutil.copyfile(PROJECT / "jobs/digits.yaml", folder / "digits.yaml")

    def ours(self, points: int, runs: str | None = None) -> float:
        """Seconds of `batchyard submit` of a sweep that nobody has submitted before."""
        self.number += 1
        job = self.folder / f"points{self.number}.yaml"
        job.write_text(
            SWEEP.format(digits=self.folder / "digits.yaml", points=points, seed=self.number)
        )
        where = ("--runs-dir", str(self.folder / (runs or f"runs{self.number}")))
        return seconds(lambda: batchyard("submit", str(job), "--backend", "slurm", *where))

    def map_array(self, points: int) -> float:
        """Seconds of a program that submits as many bare functions by submitit, started like ours:
        Python, imports and all.
        """
        self.number += 1
        argv = [
            sys.executable,
            "-c",
            MAP_ARRAY,
            str(self.folder / f"submitit{self.number}"),
            str(points),
        ]
        return seconds(lambda: subprocess.run(argv, stdout=subprocess.DEVNULL, check=True))

    def executor(self) -> submitit.SlurmExecutor:
        self.number += 1
        executor = submitit.SlurmExecutor(self.folder / f"submitit{self.number}")
        executor.update_parameters(time=10, array_parallelism=4)
        return executor


def batchyard(*argv: str) -> None:
    """As a person types it; whatever it prints on standard error ends the benchmark."""
    typed = [str(Path(sys.executable).parent / "batchyard"), *argv]
    done = subprocess.run(
        typed,
        cwd=PROJECT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{' '.join(typed)}: {done.returncode}\n{done.stderr}")


def walk(folder: Path) -> None:
    """In a program of its own, as status is."""
    program = "import os, sys\nfor _ in os.walk(sys.argv[1]): pass"
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True)


def ended(folder: Path, count: int) -> None:
    """Fills a folder with runs that have ended: a real one, and others of its files under other
    names.
    """
    batchyard(
        "submit",
        "digits",
        "--backend",
        "local",
        "--set",
        "train.epochs=2",
        "--runs-dir",
        str(folder),
    )
    (first,) = folder.iterdir()
    for number in range(1, count):
        shutil.copytree(
            first,
            folder / f"digits-{number:08x}",
            symlinks=True,
            copy_function=os.link,
            ignore=_without_code,
        )


def _without_code(folder: str, names: list[str]) -> list[str]:
    return ["code"] if "code" in names else []


def row(
    work: str, against: str, bar: str, pairs: list[tuple[float, float]], **facts: Any
) -> dict[str, Any]:
    ours, plain = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {
        "work": work,
        "against": against,
        "ratio": round(ours / plain, 3),
        "bar": bar,
        "runs": [[round(a, 3), round(b, 3)] for a, b in pairs],
        **facts,
    }


def measure(slurm: Slurm, folder: Path, points: int) -> list[dict[str, Any]]:
    bench, drop = Bench(folder), lambda: slurm.run("scancel", "-u", "root")
    bench.ours(1)  # the data set is prepared once for all, and not measured
    drop()
    against_array, against_loop = [], []
    for _ in range(RUNS):
        plain = bench.map_array(points)
        drop()
        executor = bench.executor()
        loop = seconds(lambda e=executor: [e.submit(nothing, n) for n in range(LOOP)])  # type: ignore[misc]
        drop()
        ours = bench.ours(points)
        drop()
        against_array.append((ours, plain))
        against_loop.append((ours, loop / LOOP * points))
    for _ in range(LOOKED_AT // 1000):
        bench.ours(1000, "many")
    ended(folder / "ended", LOOKED_AT)
    looks: dict[str, list[tuple[float, float]]] = {"many": [], "ended": []}
    for _ in range(RUNS):
        for name, pairs in looks.items():
            plain = seconds(lambda: slurm.run("squeue", "-h", "-r")) + seconds(
                lambda n=name: walk(folder / n)
            )  # type: ignore[misc]
            pairs.append(
                (seconds(lambda n=name: batchyard("status", "--runs-dir", str(folder / n))), plain)
            )  # type: ignore[misc]
    facts = {"machine": platform.processor() or platform.machine(), "cpus": os.cpu_count()}
    return [
        row(
            f"submit of {points} points",
            "map_array of bare functions",
            "<=5",
            against_array,
            **facts,
        ),
        row(
            f"submit of {points} points",
            "a loop of executor.submit",
            f"<={1 / 30:.4f}",
            against_loop,
            **facts,
        ),
        row(
            f"status of {LOOKED_AT} points that wait",
            "squeue and one walk of the directories",
            "<=3",
            looks["many"],
            **facts,
        ),
        row(
            f"status of {LOOKED_AT} ended runs",
            "squeue and one walk of the directories",
            "<=3",
            looks["ended"],
            **facts,
        ),
    ]


def main() -> None:
    points = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with tempfile.TemporaryDirectory() as name, booted(Path(f"{name}.cluster")) as slurm:
        os.environ.update(slurm.env, XDG_CACHE_HOME=f"{name}/cache")
        os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        # what is submitted waits
        slurm.run("scontrol", "update", "PartitionName=main", "State=down")
        (Path(name) / "work").mkdir()
        rows = measure(slurm, Path(name) / "work", points)
    for found in rows:
        print(json.dumps(found))
    sys.exit(any(found["ratio"] > float(found["bar"][2:]) for found in rows))


if __name__ == "__main__":
    main()
