"""Runs a command as the container's one job and ends it when its owner asks or is gone; standard
library only.
"""

import os
import select
import signal
import stat
import subprocess
import sys

STOPPING = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


def owner_holds_stdin() -> bool:
    """A pipe is the owner's end of `docker run -i`; /dev/null and a terminal say nothing about an
    owner.
    """
    try:
        mode = os.fstat(0).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


def run(argv: list[str]) -> int:
    """Runs argv to its end and returns its exit code, 128 + the signal's number where a signal
    killed it.

    The first stopping signal, or the end of stdin, becomes one TERM for the child, and later ones
    are dropped: a scheduler that signals twice does not cut a checkpoint short. Whoever has lost
    patience has KILL.
    """
    # Signals are read from a pipe beside stdin, so that one that comes at any moment, even before
    # the child stands, wakes the loop. The handlers only make Python write to that pipe.
    awake, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    for number in (*STOPPING, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)

    watched = {awake, 0} if owner_holds_stdin() else {awake}
    try:
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL if 0 in watched else None)
    except OSError as error:
        print(f"entrypoint: {argv[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126

    stopping = False
    while child.poll() is None:
        readable, _, _ = select.select(watched, [], [])
        stop = awake in readable and not STOPPING.isdisjoint(os.read(awake, 4096))
        # What comes in on stdin is nobody's; its end means that the docker client or the node's
        # process died.
        if 0 in readable and not os.read(0, 4096):
            watched.discard(0)
            stop = True
        if stop and not stopping:
            stopping = True
            child.terminate()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(
            "entrypoint: no command; give one after the image's name:"
            " python -m trainer config.json",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(run(sys.argv[1:]))
