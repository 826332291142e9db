"""The end of a log, and what it says last: evidence for the verdict."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from trainer.config.files.json_files import open_file

# An exception's last line, also with torch's "[rank0]: " before it
ERROR = re.compile(
    r"^(?:\[rank\d+\]: )?([A-Za-z_][\w.]*(?:Error|Exception|Interrupt|NoGPU)): ?(.*)$"
)


def tail(log: Path, most: int = 100_000) -> str:
    """The end of a log; nothing where there is none."""
    try:
        with open_file(log) as file:
            file.seek(max(0, log.stat().st_size - most))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def last_error(log: Path, lines: int | None = 5) -> dict[str, Any] | None:
    """The exception with which a log ends (in its last lines, or, None, in all), as evidence.
    torchrun's own, which tell of its ranks, do not count.
    """
    said = [line for line in tail(log).splitlines() if line.strip()]
    for line in reversed(said[-lines:] if lines else said):
        found = ERROR.match(line)
        if found and not found[1].endswith(("ChildFailedError", "SignalException")):
            return {
                "time": log.stat().st_mtime,
                "type": found[1].rpartition(".")[2],
                "message": found[2],
            }
    return None


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in tail(log).splitlines()]
    return next((line for line in reversed(lines) if line and not set(line) <= set("=-")), "")[:300]
