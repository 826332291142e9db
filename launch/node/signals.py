"""A node's part of an attempt, and the signals that it passes to its ranks."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from types import FrameType

POLL_S = 0.05


# Runs a command that dies with this process; exec'd, so that torchrun is our direct child. Never a
# preexec_fn. It is deaf to USR1 and USR2, of which torchrun would die: under proctrack/linuxproc
# Slurm sends them to the whole tree. Ranks listen again.
DIE_WITH_PARENT = (
    "import ctypes, os, signal, sys\n"
    "for number in (signal.SIGUSR1, signal.SIGUSR2): signal.signal(number, signal.SIG_IGN)\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "os.execvp(sys.argv[1], sys.argv[1:])\n"
)


@dataclass(frozen=True)
class Node:
    """This node's place in the attempt."""

    rank: int
    attempt_id: str
    master_addr: str
    master_port: int
    slurm_job: str | None = None  # what `scontrol requeue` takes

    def fill(self, argument: str) -> str:
        """Puts what only the node knows into an argument of the plan."""
        values = {
            "ATTEMPT": self.attempt_id,
            "NODE_RANK": self.rank,
            "MASTER_ADDR": self.master_addr,
            "MASTER_PORT": self.master_port,
        }
        for name, value in values.items():
            argument = argument.replace(f"{{{name}}}", str(value))
        return argument


class Signals:
    """TERM, INT, HUP, USR1 and USR2 become one TERM for the command: a second one would interrupt
    torchrun's own clean stop.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self.process: subprocess.Popen[bytes] | None = None
        for number in (
            signal.SIGTERM,
            signal.SIGINT,
            signal.SIGHUP,
            signal.SIGUSR1,
            signal.SIGUSR2,
        ):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received = number
            self.forward()

    def forward(self) -> None:
        if self.received is not None and self.process is not None and self.process.poll() is None:
            self.process.terminate()
