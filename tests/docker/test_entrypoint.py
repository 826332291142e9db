"""The container's entrypoint, run as a plain process: exit codes, signals and the end of stdin."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from .engine import ROOT, next_line

ENTRYPOINT = [sys.executable, "-I", str(ROOT / "docker" / "entrypoint.py")]

# Says ready, counts TERM, and ends with 7 when it has had one and the file named by its argument is
# there.
CHILD = """
import pathlib, signal, sys, time
terms = []
signal.signal(signal.SIGTERM, lambda *_: (terms.append(1), print("term", flush=True)))
print("ready", flush=True)
deadline = time.monotonic() + 60
while not (terms and pathlib.Path(sys.argv[1]).exists()):
    assert time.monotonic() < deadline
    time.sleep(0.01)
print(len(terms), flush=True)
sys.exit(7)
"""


@contextmanager
def started(*argv: str, **options) -> Iterator[subprocess.Popen]:
    with subprocess.Popen(
        [*ENTRYPOINT, *argv], stdout=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 3"], 3),
        (["sh", "-c", "kill -KILL $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["/nonexistent/command"], 127),
        (["/"], 126),
        ([], 2),
    ],
)
def test_exit_code(argv: list[str], code: int) -> None:
    # /dev/null is what a container without -i has: no owner, and no reason to stop.
    done = subprocess.run(
        [*ENTRYPOINT, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_every_stopping_signal_becomes_term(name: str, tmp_path: Path) -> None:
    with started(sys.executable, "-c", CHILD, str(tmp_path), stdin=subprocess.PIPE) as process:
        assert next_line(process.stdout) == "ready\n"
        process.send_signal(signal.Signals[name])
        assert next_line(process.stdout) == "term\n"
        assert process.wait(timeout=60) == 7


def test_only_the_first_signal_counts(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    with started(sys.executable, "-c", CHILD, str(go_on), stdin=subprocess.PIPE) as process:
        assert next_line(process.stdout) == "ready\n"
        process.send_signal(signal.SIGUSR1)
        assert next_line(process.stdout) == "term\n"
        process.send_signal(signal.SIGTERM)
        process.stdin.close()
        go_on.touch()
        assert next_line(process.stdout) == "1\n"
        assert process.wait(timeout=60) == 7


def test_end_of_a_piped_stdin_becomes_term(tmp_path: Path) -> None:
    with started(sys.executable, "-c", CHILD, str(tmp_path), stdin=subprocess.PIPE) as process:
        assert next_line(process.stdout) == "ready\n"
        process.stdin.write("nobody reads this\n")
        process.stdin.close()
        assert next_line(process.stdout) == "term\n"
        assert process.wait(timeout=60) == 7


def test_a_stdin_that_is_not_a_pipe_is_the_childs(tmp_path: Path) -> None:
    words = tmp_path / "words"
    words.write_text("hello\n")
    with words.open() as stdin, started("cat", stdin=stdin) as process:
        assert next_line(process.stdout) == "hello\n"
        assert process.wait(timeout=60) == 0
