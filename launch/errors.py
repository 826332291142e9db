"""What ends a command with a message and no traceback; each module derives its own.

Imports next to nothing, so that no command waits.
"""

from __future__ import annotations

import errno

TO_TRY = {
    errno.ENOSPC: (
        "free some space on that disk, or name another place by --runs-dir or in the site file"
    ),
    errno.EDQUOT: (
        "your quota there is used up: remove something, or name another place by --runs-dir or in"
        " the site file"
    ),
    errno.EROFS: "that disk takes no writing: name another place by --runs-dir or in the site file",
    errno.EACCES: (
        "you may not do that there: ask its owner, or name another place by --runs-dir or in the"
        " site file"
    ),
    errno.EPERM: (
        "you may not do that there: ask its owner, or name another place by --runs-dir or in the"
        " site file"
    ),
    errno.ENAMETOOLONG: "a name has at most 255 bytes and a path 4,096: give a shorter one",
    errno.EMFILE: "too many files are open: raise `ulimit -n`",
    errno.ENOTDIR: "a file is where a folder should be: move it away",
    errno.EISDIR: "a folder is where a file should be: move it away",
    errno.EIO: "the disk fails: have it looked after",
    errno.ESTALE: "the network disk has lost that file: try again, or have it looked after",
}


class Wrong(Exception):
    """A person's mistake: exit code 2. The message says what is wrong and what to try."""

    def told(self) -> str:
        """What is printed."""
        return f"batchyard: {self}"


class Failed(Exception):
    """What was asked for could not be done here and now: exit code 1. The message says why."""


def of_the_system(error: OSError) -> str:
    """What the system refused, where, and what to try."""
    if error.strerror is None:
        return str(error)
    named = [str(name)[:300] for name in (error.filename, error.filename2) if name is not None]
    line = ": ".join([*named, error.strerror])
    to_try = TO_TRY.get(error.errno or 0)
    return f"{line}; {to_try}" if to_try else line


class StartError(Failed):
    """The attempt could not be started; the message shows the command and what it said."""


class SubmitError(Wrong):
    """The run cannot be submitted; the message says why and what to try."""
