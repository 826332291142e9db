"""Where the project and its site file are, without reading them: what every verb asks first, and so without pydantic."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from launch.errors import Wrong

RUNS = "runs"  # where the site names no other folder


class NoSiteFile(Wrong):
    """There is no such site file."""


def site_file(named: Path | None, project: Path) -> Path | None:
    """The site's file: the one that is named, else the one in the XDG config folder, else site.yaml beside the project; None: there
    is none. Raises NoSiteFile."""
    if named is not None and not named.is_file():
        raise NoSiteFile(f"{named}: no such site file; launch/site.example.yaml shows one")
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    candidates = [named] if named else [config / "batchyard" / "site.yaml", project / "site.yaml"]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def project() -> Path:
    """The folder with jobs/: the nearest one at or above the current folder, else the one that batchyard was installed from."""
    for folder in (Path.cwd(), *Path.cwd().parents):
        if (folder / "jobs").is_dir() and (folder / "trainer").is_dir():
            return folder
    return Path(__file__).resolve().parents[1]


def shown(value: Any) -> str:
    """A path as the person would type it from here."""
    try:
        return str(Path(value).relative_to(Path.cwd()))
    except ValueError:
        return str(value)
