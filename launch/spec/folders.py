"""Where data, runs and caches are, and which Python runs a job: options before the site file."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launch.environment import RUNS, printable

if TYPE_CHECKING:
    from launch.spec.site import Site


@dataclass(frozen=True)
class Folders:
    """Absolute paths."""

    data: Path
    cache: Path
    runs: Path


def folders(site: Site, data_dir: Path | None = None) -> Folders:
    """Where things lie: `data_dir` (an option of the call), else the site's, else $BATCHYARD_DATA
    and the defaults.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "batchyard"
    data = data_dir or site.paths.data or os.environ.get("BATCHYARD_DATA") or "data"
    found = Folders(
        *(
            Path(p).expanduser().absolute()
            for p in (data, site.paths.cache or cache, site.paths.runs or RUNS)
        )
    )
    for name, folder in (("data", found.data), ("cache", found.cache), ("runs", found.runs)):
        printable(folder, f"paths.{name}")
    return found


def python(site: Site) -> str:
    """The Python that runs the trainer."""
    return str(Path(site.python).expanduser()) if site.python else sys.executable
