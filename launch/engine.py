"""The container engine as a node sees it: what a killed attempt left there, and why it refuses to
start a container. Standard library only.
"""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

from trainer.config.files.layout import RunDir

# of `docker run`: the engine's own error; the command cannot be run; it is not in the image
REFUSALS = (125, 126, 127)
ANSWER_S = 30
STOP_S = 45  # for a checkpoint of what still runs without its owner

_NO_CAUSE = re.compile(r"(?:See|Run) '.*--help'|Usage:|$")
_CAUSE = re.compile(r"\w+: Error response|Error:")
HINTS = (
    (
        r"already in use",
        (
            "`{client} ps --all --filter name={name}` shows the other container of that name:"
            " remove it where nobody needs it"
        ),
    ),
    (
        r"device driver|CDI device|nvidia|gpus",
        "the engine gives no GPUs: look after its NVIDIA toolkit on that machine",
    ),
    (
        r"find image|pull access|[Nn]o such image|manifest",
        (
            "the image is not here: `make image` builds ours; container.image in the "
            "job, or docker.image in the site file, names another"
        ),
    ),
    (
        r"[Cc]annot connect|permission denied.*sock|Is the docker daemon",
        "whether the engine runs, and whether you may use it",
    ),
    (r"shm-size", "docker.shm_size in the site file is a size as in 2g"),
)


def refusal(log: str) -> str:
    """The line with which the engine refused, of what `docker run` printed."""
    lines = [line.strip() for line in log.splitlines() if not _NO_CAUSE.match(line.strip())]
    causes = [line for line in lines if _CAUSE.match(line)]
    return ["", *lines, *causes][-1]


def hint(line: str, client: str, name: str) -> str:
    """What to try about a line with which the engine refused."""
    for pattern, text in HINTS:
        if re.search(pattern, line):
            return text.format(client=client, name=name)
    return (
        "what that line names is set in docker.* of the site file, or in container.image of the job"
    )


def remove_leftovers(client: str, run: RunDir) -> list[str]:
    """Removes the containers of this run directory, and prints which; returns their ids.

    Only for who holds the run's lock: their owner is gone.

    One that still runs may write its checkpoint first. A container of the same run_id in another
    folder of runs is left alone.
    """
    listing = _ask(
        client, "ps", "--all", "--quiet", "--no-trunc", f"--filter=label=batchyard.run={run.run_id}"
    )
    ids = listing.split()
    found = _parsed(_ask(client, "inspect", *ids)) if ids else []
    ours = [str(container["Id"]) for container in found if str(run.path) in _mounted(container)]
    for container in ours:
        _ask(client, "stop", f"--time={STOP_S}", container, limit_s=STOP_S + 15)
        _ask(client, "rm", "--force", container)
    if ours:
        print(
            f"{run.run_id}: removed what a killed attempt had left: container {', '.join(ours)}",
            flush=True,
        )
    return ours


def _mounted(container: dict[str, Any]) -> list[str]:
    return [str(mount.get("Source")) for mount in container.get("Mounts") or []]


def _parsed(text: str) -> list[dict[str, Any]]:
    try:
        return list(json.loads(text))
    except ValueError:
        return []


def _ask(*argv: str, limit_s: float = ANSWER_S) -> str:
    """What the client prints; nothing where it does not answer: `docker run` then says why."""
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=limit_s, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout
