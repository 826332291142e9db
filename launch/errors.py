"""What ends a command with a message and no traceback; each module derives its own. Imports nothing, so that no command waits."""

from __future__ import annotations


class Wrong(Exception):
    """A person's mistake: exit code 2. The message says what is wrong and what to try."""

    def told(self) -> str:
        """What is printed."""
        return f"batchyard: {self}"


class Failed(Exception):
    """What was asked for could not be done here and now: exit code 1. The message says why."""
