"""Takes locks when a test says so, with the code of this version or another, or is stopped at it.

`python tests/lock_taker.py CODE rounds` or `... CODE points`; both read lines of JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

try:
    from trainer.config.files import lock
except ImportError:  # an earlier version
    from trainer.config import lock


def rounds() -> None:
    """{path, go, settings}: takes it then, prints whether it did; the next line frees it."""
    for line in sys.stdin:
        told = json.loads(line)
        mine = lock.Lock(Path(told["path"]), **told["settings"])
        while time.time() < told["go"]:
            pass
        taken = mine.acquire()
        print(int(taken), flush=True)
        sys.stdin.readline()
        if taken:
            mine.release()
        print("freed", flush=True)


def points() -> None:
    """{path, settings, point, signal, elsewhere}: a child takes the lock; prints the child's pid.

    The signal comes before that call of the file system, counted from 1.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a killed child is no zombie
    for line in sys.stdin:
        told = json.loads(line)
        pid = os.fork()
        if pid == 0:
            take_until(told)
            os._exit(0)
        print(pid, flush=True)


def take_until(told: dict[str, Any]) -> None:
    """In the child: leaves in PATH.said whether it took the lock, and has it still."""
    if told["elsewhere"]:  # another machine, as far as others can see
        os.readlink = lambda path: "pid:[of another machine]"  # type: ignore[assignment, misc]
    calls = 0
    armed = True

    def count(event: str, arguments: Any) -> None:
        nonlocal calls
        if armed and event.startswith(("os.", "open", "time.sleep")):
            calls += 1
            if calls == told["point"]:
                os.kill(os.getpid(), told["signal"])

    path = Path(told["path"])
    mine = lock.Lock(path, **told["settings"])
    sys.addaudithook(count)
    taken = mine.acquire()
    armed = False

    said = "taken" if taken else "refused"
    if taken:
        try:
            mine.verify()
        except lock.LockLost:
            said = "lost"
    path.with_name(f"{path.name}.said").write_text(said)


if __name__ == "__main__":
    {"rounds": rounds, "points": points}[sys.argv[2]]()
