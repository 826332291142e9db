"""What README.md and the Makefile promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cli import PROJECT, Shell

README = (PROJECT / "README.md").read_text()


def test_the_messages_that_the_readme_shows_are_printed(tmp_path: Path) -> None:
    """The example is a case of the tests: exactly what it prints stands in the README."""
    shown = re.search(r"\n\$ batchyard check five_mistakes.yaml\n(.*?)\n```", README, re.DOTALL)
    assert shown is not None
    shutil.copy(PROJECT / "tests" / "cases" / "five_mistakes.yaml", tmp_path)
    assert (
        Shell(tmp_path, cwd=tmp_path).run("check", "five_mistakes.yaml", code=2).strip() == shown[1]
    )


@pytest.mark.parametrize("verb", ["check", "show", "submit", "status", "logs", "cancel", "report"])
def test_every_verb_of_make_takes_arguments(verb: str) -> None:
    command = ["make", "-n", verb, "JOB=a", "RUN=b", "ARGS=--help"]
    # Below `make test-all` the variables of the outer make would have this one name its directory
    # too.
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    printed = subprocess.run(
        command, cwd=PROJECT, env=env, capture_output=True, text=True, check=True
    ).stdout
    name = {"status": "", "check": "a ", "show": "a ", "submit": "a "}.get(verb, "b ")
    assert printed.splitlines()[-1].split("#")[0].split() == [
        ".venv/bin/batchyard",
        verb,
        *name.split(),
        "--help",
    ]
