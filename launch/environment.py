"""What differs between machines, without reading site.yaml (launch.spec.site): this machine itself,
where the project is and things lie. Reads the environment; knows no job. Imports no pydantic: every
verb asks here first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from launch.errors import Wrong
from launch.text import plain

BackendName = Literal["local", "docker", "slurm"]
BACKENDS: tuple[BackendName, ...] = get_args(BackendName)
RUNS = "runs"  # where the site names no other folder


class NoSiteFile(Wrong):
    """There is no such site file."""


def find(named: Path | None, project: Path) -> Path | None:
    """The site's file: the one that is named, else the one in the XDG config folder, else site.yaml
    beside the project; None: there is none. Raises NoSiteFile.
    """
    if named is not None and not named.is_file():
        raise NoSiteFile(f"{named}: no such site file; launch/site.example.yaml shows one")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    candidates = [named] if named else [config / "batchyard" / "site.yaml", project / "site.yaml"]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


class OddPath(Wrong):
    """A path that no script and no terminal takes as it is."""


@dataclass(frozen=True)
class Machine:
    """What one machine has."""

    gpus: int
    cpus: int
    cpu_bf16: bool = True  # has instructions for bf16


def printable(path: Path, what: str) -> Path:
    """The path.

    Raises OddPath where it has a control character: a newline in it would be a line of the batch
    script.
    """
    if odd := re.search(r"[\x00-\x1f\x7f-\x9f]", str(path)):
        raise OddPath(
            f"{what}: {plain(path)} has a control character ({plain(odd[0])}) in it; rename that"
            " folder, or name another"
        )
    return path


def machine() -> Machine:
    """This machine: its GPUs by nvidia-smi or the driver's device files, its CPUs as this process
    may use them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = _gpus()
    if visible is not None:
        gpus = min(gpus, len([v for v in visible.split(",") if v.strip() not in ("", "-1")]))
    affinity = getattr(os, "sched_getaffinity", None)  # macOS has none
    return Machine(gpus, len(affinity(0)) if affinity else os.cpu_count() or 1, _cpu_bf16())


def _cpu_bf16() -> bool:
    """x86: avx512_bf16 or amx_bf16; Arm: bf16. A system that does not tell is believed."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return True
    return bool(re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", text))


def _gpus() -> int:
    command = shutil.which("nvidia-smi")
    if command:
        try:
            listing = subprocess.run(
                [command, "-L"], capture_output=True, text=True, timeout=30, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return 0
        return (
            sum(line.startswith("GPU ") for line in listing.stdout.splitlines())
            if listing.returncode == 0
            else 0
        )
    if not Path("/dev/nvidiactl").exists():
        return 0
    return sum(p.name[6:].isdigit() for p in Path("/dev").glob("nvidia[0-9]*"))


def environment(**changes: str) -> dict[str, str]:
    """This process's environment for a child, with changes."""
    return {**os.environ, **changes}


def project() -> Path:
    """The folder with jobs/: the nearest one at or above the current folder, else the one that
    batchyard was installed from.
    """
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "jobs").is_dir() and (folder / "trainer").is_dir():
            return folder
    return Path(__file__).resolve().parents[1]
