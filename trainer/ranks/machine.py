"""The machine of a rank: its device's name, and the CPUs that it may use."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import torch


def name_of(device: torch.device) -> str:
    """What its maker calls it, as in `NVIDIA H100 80GB HBM3`; of a CPU that does not tell, its
    architecture.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        told = re.search(r"^model name\s*: *(.+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:  # not Linux
        told = None
    return told[1].strip() if told else platform.processor() or platform.machine()


def cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpus_of_a_rank() -> int:
    """Its share of the CPUs that all ranks of this node may use; at least one."""
    return max(
        1, cpus() // int(os.environ.get("LOCAL_WORLD_SIZE", os.environ.get("WORLD_SIZE", 1)))
    )
