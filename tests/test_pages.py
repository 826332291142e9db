"""What README.md and the Makefile promise."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
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


TRACED = """
import sys
seen = []

def note(frame, event, _):
    file = frame.f_code.co_filename
    if event == "call" and file.endswith(FILES) and file not in seen:
        seen.append(file)

from launch.cli import main
sys.argv = ["batchyard", "show", "digits", "--backend", "local"]
sys.setprofile(note)
try:
    main()
finally:
    sys.setprofile(None)
    print(*seen, sep="\\n", file=sys.stderr)
"""


def test_the_readmes_way_from_a_job_to_a_step_is_the_codes() -> None:
    way = re.findall(r"^\d\. \[([\w/.]+)\]", README, re.MULTILINE)
    assert way[0] == "jobs/digits.yaml" and len(way) <= 8

    # a process of the launcher calls its files in this order
    launcher, rest = way[1:4], way[4:]
    code = f"FILES = {tuple(launcher)!r}\n{TRACED}"
    traced = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    called = [line for line in traced.stderr.splitlines() if line.endswith(tuple(launcher))]
    assert [Path(file).relative_to(PROJECT).as_posix() for file in called] == launcher

    # the next ones are started as processes: by the backend, and by the plan's own command line
    assert rest == ["launch/backends/local.py", "launch/node/attempt.py", "trainer/train.py"]
    assert '"launch.node"' in (PROJECT / rest[0]).read_text()
    assert (
        "from launch.node.attempt import main" in (PROJECT / "launch/node/__main__.py").read_text()
    )
    printed = " ".join(traced.stdout.replace("\\", " ").split())
    assert re.search(r"torch\.distributed\.run .* -m trainer ", printed)
    assert "from trainer.train import main" in (PROJECT / "trainer/__main__.py").read_text()
    assert "t.optimizer.step()" in (PROJECT / rest[2]).read_text()
