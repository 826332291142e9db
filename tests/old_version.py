"""The project as it was at an earlier commit, to make the runs, sweeps and jobs that this one must
still continue.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli import PROJECT, Shell

# The last commit whose runs, queued jobs and sweeps a user may have when this version arrives.
COMMIT = "8e3ba84"


def extract(folder: Path) -> Path:
    """Writes that commit's files to `folder` and returns it. Skips where the history is missing."""
    known = ["git", "-C", str(PROJECT), "cat-file", "-e", f"{COMMIT}^{{commit}}"]
    if subprocess.run(known, capture_output=True, check=False).returncode:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(
            f"this checkout has no commit {COMMIT}"
        )

    folder.mkdir(parents=True)
    archive = folder.parent / f"{folder.name}.tar"
    git = ["git", "-C", str(PROJECT), "archive", f"--output={archive}", COMMIT]
    subprocess.run(git, check=True)
    subprocess.run(["tar", "-xf", str(archive), "-C", str(folder)], check=True)
    return folder


def shell_of(old: Path, shell: Shell) -> Shell:
    """The same place to type in, with the extracted project's `batchyard`."""
    return Shell(shell.runs, cwd=old, env=(*shell.env, ("PYTHONPATH", str(old))))
