"""The evidence of an attempt: what its ranks, torchrun, the kernel and Slurm left in files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.runs import array_listing, records
from launch.runs.log_end import last_error, tail
from trainer.config.files.json_files import read_jsonl
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import Outcome, Status, Verdict

BY = "launch.node"


AGAIN = "submitting again continues from the last checkpoint"


# A name that does not resolve. Once it means nothing: of a name without an IPv6 address torch says
# so, too, and goes on.
TRIED = 5  # so often within a minute where there is no address at all


UNRESOLVED = re.compile(r"network addresses? of \(?([^,\s)]+).*?\(gai error: ([^)]*)\)")


# torchrun's table of ranks that failed, in the log of its node; the one that it saw first is named
# in the root cause.
EXIT = re.compile(r"rank\s*: (\d+) \(local_rank: \d+\)\s*\n\s*exitcode\s*: (-?\d+)")


TORCHRUN_STOPPED = re.compile(r"SignalException: Process \d+ got signal: (\d+)")


SLURM: tuple[tuple[str, Verdict, str], ...] = (
    (r"oom.kill event|OOM Killed", "oom_host", "Slurm killed it for its memory"),
    (r"DUE TO TIME LIMIT", "timeout", "Slurm ended it at its time limit"),
    (r"DUE TO PREEMPTION", "preempted", "Slurm preempted it"),
    (r"DUE TO NODE FAILURE|Node failure", "infrastructure", "Slurm lost the node"),
)


@dataclass(frozen=True)
class Case:
    """The evidence of one attempt. ranks: each rank's own words, the earliest first. exits: exit
    codes that torchrun saw, on each node the first one first. launcher: how launch.node ended,
    where somebody waited for it.
    """

    run: RunDir
    attempt: Attempt
    world_size: int
    ranks: dict[int, dict[str, Any]]
    beats: dict[int, dict[str, Any]]
    exits: dict[int, int]
    nodes: dict[int, dict[str, Any]]
    launcher: int | None

    def outcome(
        self, verdict: Verdict, cause: str, hint: str | None, rank: int | None = None
    ) -> Outcome:
        """A stop where the verdict is one that always continues, else a failure."""
        last = self.last_step() or checkpoint_step(self.run)
        status: Status = "stopped" if verdict in ("preempted", "timeout", "cancelled") else "failed"
        return Outcome(
            status, verdict, self.attempt.id, BY, last, rank, " ".join(cause.split())[:500], hint
        )

    def last_step(self) -> int | None:
        """The last step that this attempt is known to have done."""
        told = [e.get("step") for e in (*self.ranks.values(), *self.beats.values())]
        timing = (row for row in read_jsonl(self.run.timing) if isinstance(row, dict))
        told += [row.get("global_step") for row in timing if row.get("attempt") == self.attempt.id]
        return max((step for step in told if isinstance(step, int)), default=None)

    def has_several_nodes(self) -> bool:
        record = records.evidence(self.attempt.record, records.ATTEMPT) or {}
        return int(record.get("nodes") or 1) > 1

    def unresolved(self) -> str | None:
        """What the attempt waited for where it came to no step: a host's name that does not
        resolve.
        """
        if any(
            told.get("step") is not None for told in (*self.ranks.values(), *self.beats.values())
        ):
            return None
        for log in sorted(self.attempt.path.glob("*.log")):
            found = UNRESOLVED.findall(tail(log))
            if len(found) >= TRIED:
                name, error = found[-1]
                return f"the name '{name}' does not resolve (gai error: {error})"
        return None

    def killed_for_memory(self) -> bool:
        return any(node.get("oom_kills") for node in self.nodes.values()) or bool(
            re.search(SLURM[0][0], self.slurm_log())
        )

    def slurm_log(self) -> str:
        """What Slurm wrote about the job of this attempt."""
        job = re.fullmatch(r"slurm-(\d+)(_\d+)?\.\d+", self.attempt.id)
        # an array's logs lie with its sweep
        folder = Path((array_listing.job_of(self.run) or {}).get("logs") or self.run.slurm)
        logs = folder.glob(f"{job[1]}{job[2] or ''}_*log.*") if job else ()
        return "\n".join(tail(log) for log in sorted(logs))

    def host(self, rank: int | None = None) -> str:
        """Where a rank ran; by default, node 0."""
        told = {} if rank is None else self.beats.get(rank) or self.ranks.get(rank) or {}
        record = records.evidence(self.attempt.record, records.ATTEMPT) or {}
        return str(told.get("host") or record.get("host") or "its node")

    def log(self, rank: int) -> Path:
        own = self.attempt.rank_log(rank)
        return own if own.exists() else self.attempt.node_log(0)


def gather(run: RunDir, attempt: Attempt, launcher: int | None) -> Case:
    record = records.evidence(attempt.record, records.ATTEMPT) or {}
    size = int(record.get("world_size") or 1)
    numbers = range(int(record.get("nodes") or 1))
    nodes = {
        n: found
        for n in numbers
        if (found := records.evidence(attempt.node_record(n), records.NODE))
    }
    exits: dict[int, int] = {}
    for log in sorted(attempt.path.glob("node-*.log")):
        others, _, root = tail(log).partition("Root Cause")
        for part in (root, others):
            exits.update(
                {int(r): int(code) for r, code in EXIT.findall(part) if int(r) not in exits}
            )
    left = [
        e for p in attempt.path.glob("ranks/*.json") if (e := records.evidence(p, records.EVIDENCE))
    ]
    words = {int(e["rank"]): e for e in sorted(left, key=lambda e: (float(e["time"]), e["rank"]))}
    for rank in range(size):
        if rank in words:
            continue
        if said := last_error(attempt.rank_log(rank)):  # its disk took no evidence
            words[rank] = {"rank": rank, **said}
        # it ended while it imported, before it had a log
        elif exits.get(rank, 0) > 0 and not attempt.rank_log(rank).exists():
            log = attempt.node_log(rank * len(nodes) // size)
            words.update(
                {rank: {"rank": rank, **said}} if (said := last_error(log, lines=None)) else {}
            )
    if not words and not exits and 0 in nodes and (said := last_error(attempt.node_log(0))):
        words[0] = {"rank": 0, **said}  # torchrun itself
    beats = {r: beat for r in range(size) if (beat := _beat(attempt, r))}
    return Case(run, attempt, size, words, beats, exits, nodes, launcher)


def _beat(attempt: Attempt, rank: int) -> dict[str, Any] | None:
    return records.evidence(attempt.rank_heartbeat(rank), records.HEARTBEAT)


def checkpoint_step(run: RunDir) -> int | None:
    """The step of the newest checkpoint, by its name; None where there is none."""
    newest = run.checkpoints / "latest"
    found = re.match(r"step-(\d+)\.", newest.resolve().name) if newest.exists() else None
    return int(found[1]) if found else None
