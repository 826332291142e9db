"""Shows a run as it goes: rank 0's log line by line and, on a terminal, a progress bar.

It only reads the run directory.
"""

from __future__ import annotations

import re
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from launch.text import plain
from trainer.config.files.json_files import NotAFile, open_file
from trainer.config.files.layout import Attempt

STEP = re.compile(r"\bstep (\d+)/(\d+)")


class Tail:
    """The new whole lines of a growing file."""

    def __init__(self, path: Any) -> None:
        self.path, self.position, self.rest = path, 0, b""

    def lines(self) -> list[str]:
        return [line.decode(errors="replace") for line in self.new_lines()]

    def new_lines(self) -> list[bytes]:
        try:
            with open_file(self.path) as file:
                file.seek(self.position)
                new = file.read()
        except NotAFile:
            raise
        except OSError:
            return []
        self.position += len(new)
        whole: list[bytes]
        *whole, self.rest = (self.rest + new).split(b"\n")
        return whole


class Follower:
    """A context: `show` prints what is new."""

    def __init__(self, attempt: Attempt, rank: int = 0, console: Console | None = None) -> None:
        self.tail = Tail(attempt.rank_log(rank))
        self.console = console or Console(highlight=False, soft_wrap=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} steps"),
        )
        self.progress = Progress(
            *columns, TimeRemainingColumn(), console=self.console, transient=True
        )
        self.task = (
            None if not self.console.is_terminal else self.progress.add_task("starting", total=None)
        )

    def __enter__(self) -> Follower:
        if self.task is not None:
            self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self.task is not None:
            self.progress.stop()

    def show(self) -> None:
        for line in self.tail.lines():
            self.note(line)
            found = STEP.search(line)
            if found and self.task is not None:
                self.progress.update(
                    self.task, description="training", completed=int(found[1]), total=int(found[2])
                )

    def note(self, line: str) -> None:
        """Prints a line; on a terminal, its escapes are shown."""
        if self.console.is_terminal:
            self.console.print(plain(line, keep="\t"), markup=False)
        else:
            click.echo(line, file=self.console.file)
