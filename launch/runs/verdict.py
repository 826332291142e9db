"""Judges from the evidence of an attempt how it ended, never from torchrun's exit status.

Standard library only.

Evidence, the strongest first: what a rank itself saw (ranks/<r>.json, else the end of its log); the
ranks' heartbeats; how torchrun saw its ranks end; what the kernel counted and what launch.node and
Slurm said. An error that tells of another rank's end ("Connection closed by peer") is never the
cause while there is any other, whichever came first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import engine
from launch.runs import records
from launch.runs.evidence import AGAIN, SLURM, TORCHRUN_STOPPED, Case, gather
from launch.runs.log_end import last_line, tail
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import Outcome, Verdict

LESS_MEMORY = (
    "ask for more resources.mem_gb, or for fewer resources.nproc_per_node or execution.workers"
)
SHARED_MEMORY = (
    "shared memory is too small: docker.shm_size in the site file, or fewer execution.workers"
)

# A rank's error, as "Type BaseTypes: message" -> the verdict and what to try. The first that
# matches counts.
CAUSES: tuple[tuple[str, Verdict, str | None], ...] = (
    (r"^NoGPU", "infrastructure", "nvidia-smi on that node, and whether the job asked for GPUs"),
    (
        (
            r"OutOfMemoryError|CUDA (error: )?out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda"
            r" failure.*out of memory"
        ),
        "oom_gpu",
        "set train.micro_batch_size lower; the global batch stays",
    ),
    (
        (
            r"\bMemoryError\b|an't allocate memory|annot allocate memory|worker.*killed by signal:"
            r" Killed"
        ),
        "oom_host",
        LESS_MEMORY,
    ),
    (
        r"worker was killed by SIGKILL",
        "killed",
        (
            "it was sent by somebody, or by the kernel for want of memory: dmesg on that node"
            f" tells; {LESS_MEMORY}"
        ),
    ),
    (
        r"worker was killed by SIGBUS|Bus error|insufficient shared memory|file </torch_.*No space",
        "oom_host",
        SHARED_MEMORY,
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "infrastructure",
        f"free some space there; {AGAIN}",
    ),
    (
        (
            r"Read-only file system|Input/output error|Stale file handle|Transport endpoint|Remote"
            r" I/O error"
        ),
        "infrastructure",
        f"the disk does not take what is written: have it looked after; {AGAIN}",
    ),
    (
        r"Address already in use|EADDRINUSE",
        "infrastructure",
        "another process took the port; submit again",
    ),
    (
        r"ECC error|fallen off the bus|GPU is lost|CUDA driver|NVML|no CUDA-capable device|hardware"
        r" stack error"
        r"|CUDA error: (unspecified launch failure|unknown error|initialization error)",
        "infrastructure",
        f"the GPU or its driver failed: nvidia-smi and dmesg on that node; {AGAIN}",
    ),
    (r"^DataError", "data", None),
    (
        r"data_sha256|prepared data in .* is not",
        "data",
        "put the data back as it was, or start another run on it by --new",
    ),
)

# What a rank says when another one is gone, or when it was itself asked to stop: the effect, not
# the cause.
EFFECTS = re.compile(
    r"\bConnection\w*Error|Connection (closed|reset|refused|aborted|timed out)|Broken ?pipe"
    r"|gloo/|ProcessGroup(NCCL|Gloo)|\bNCCL\b|\bnccl[A-Z]"
    r"|Dist(Backend|Network|Store)Error|TCPStore|[Ss]ocket [Tt]imeout|Rendezvous|collective"
    r" operation|KeyboardInterrupt"
    r"|killed by signal: (Terminated|Interrupt|Hangup|User)"
)
# trainer/data: of the code of earlier versions, with which a run may be frozen
DATA_FOLDERS = re.compile(r"trainer/(batches|prepared|data)/")
TIMED_OUT = re.compile(r"[Tt]im(ed|e) ?-?out")
# where they come while data is read
DATA_ERRORS = {"FileNotFoundError", "OSError", "ValueError", "EOFError"}


FULL = re.compile(r"^CHECKPOINT NOT WRITTEN.*(?:No space left|quota|Read-only).*$", re.M)
# what torchrun, too, ends the other ranks with
ASKED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


def conclude(run: RunDir, attempt: Attempt, launcher: int | None = None) -> Outcome:
    """How the attempt ended: the trainer's word where it left one, else judged, and written where
    the disk takes it.
    """
    outcome = Outcome.read(attempt.outcome)
    if outcome is None:
        outcome = judge(run, attempt, launcher)
        with contextlib.suppress(OSError):
            outcome.write(attempt.outcome)
    return outcome


def judge(run: RunDir, attempt: Attempt, launcher: int | None = None) -> Outcome:
    """The verdict from the evidence alone.

    Writes nothing. launcher: launch.node's exit status, None where nobody saw it.
    """
    case = gather(run, attempt, launcher)
    explanations: tuple[Callable[[Case], Outcome | None], ...] = (
        error,
        hang,
        asked_to_stop,
        death,
        effects,
    )
    return next((found for explain in explanations if (found := explain(case))), None) or no_word(
        case
    )


def cause_of(words: dict[str, Any]) -> tuple[Verdict, str | None] | None:
    """The verdict and the hint of a rank's own error; None where it tells of another rank's end."""
    kinds = words.get("kinds") or ()
    text = f"{words['type']} {' '.join(kinds)}: {words['message']}"
    for pattern, verdict, hint in CAUSES:
        if re.search(pattern, text):
            return verdict, hint
    if EFFECTS.search(text):
        return None
    about_data = DATA_ERRORS if "phase" in words else {"FileNotFoundError"}
    if words.get("phase", "data") == "data" and about_data & {words["type"], *kinds}:
        return "data", None
    return "user_error", None


def error(case: Case) -> Outcome | None:
    """The first error of a rank that is no effect of another's."""
    own = [
        (words, found)
        for words in case.ranks.values()
        if words["type"] != "Hang" and (found := cause_of(words))
    ]
    if not own:
        return None
    words, (verdict, hint) = own[0]
    if verdict == "killed" and case.killed_for_memory():
        verdict, hint = "oom_host", LESS_MEMORY
    rank, same = words["rank"], [w["rank"] for w, _ in own[1:] if w["type"] == words["type"]]
    message = f"{words['type']}: {words['message']}" if words["message"] else words["type"]
    also = f" (rank {', '.join(map(str, same[:8]))} too)" if same else ""
    outcome = case.outcome(
        verdict,
        message + also,
        hint or f"the whole traceback is at the end of {case.log(rank)}",
        rank,
    )
    return replace(outcome, extra={"where": words["where"]} if words.get("where") else {})


def hang(case: Case) -> Outcome | None:
    """Which rank the others wait for: the one that is silent, else in no collective,
    else behind.
    """
    hung = {r: words for r, words in case.ranks.items() if words["type"] == "Hang"}
    if not hung:
        return None
    silent = [r for r in range(case.world_size) if r not in case.ranks]
    guilty = waited_for(hung, silent)
    first = next(iter(hung.values()))
    cause = f"Hang: {first['message']}"
    if guilty:
        place = hung.get(guilty[0]) or case.beats.get(guilty[0], {})
        waiting = [r for r in hung if r not in guilty]
        cause += f"; {standing_still(guilty, place, waiting, silent=bool(silent))}"
    else:
        suspect = (
            "the network between the nodes" if case.has_several_nodes() else "a device that hangs"
        )
        cause += (
            f"; all ranks are in {first.get('where')}: {suspect}, or ranks that disagree about what"
            " comes next"
        )
    stack = case.attempt.rank_stack(guilty[0] if guilty else first["rank"])
    hint = (
        f"{'its stack: ' + str(stack) if stack.exists() else 'no stack of it'}; {AGAIN}; where so"
        " long is right, raise execution.hang_limit_s"
    )
    return case.outcome("hang", cause, hint, guilty[0] if guilty else None)


def standing_still(
    guilty: list[int], place: dict[str, Any], waiting: list[int], *, silent: bool
) -> str:
    """Where the rank is that others wait for."""
    stands = "gives no sign any more, last seen" if silent else "stands"
    at = (
        f"at {place['where']} ({place.get('phase')})"
        if place.get("where")
        else f"in {place.get('phase', 'an unknown place')}"
    )
    others = (
        f"; rank {', '.join(map(str, waiting[:8]))} wait{'s' if len(waiting) == 1 else ''} for it"
        if waiting
        else ""
    )
    return f"rank {guilty[0]} {stands} {at}{others}"


def waited_for(ranks: dict[int, dict[str, Any]], silent: list[int]) -> list[int]:
    """Of ranks that stand still, those that keep the others waiting; empty where they cannot be
    told apart.
    """
    outside = [r for r, place in ranks.items() if not place.get("collective")]
    steps = {r: place.get("step") or 0 for r, place in ranks.items()}
    behind = [r for r in ranks if steps[r] < max(steps.values())]
    return silent or (outside if len(outside) < len(ranks) or len(ranks) == 1 else []) or behind


def asked_to_stop(case: Case) -> Outcome | None:
    """A person's cancel, or a signal to launch.node or torchrun, before the trainer could leave a
    checkpoint and a word.
    """
    if case.run.cancel.exists():
        return case.outcome("cancelled", "cancelled by a person, before a new checkpoint", None)
    received = next((n["signal"] for n in case.nodes.values() if n.get("signal")), None)
    to = "" if received else " to torchrun"
    if received is None and (found := TORCHRUN_STOPPED.search(tail(case.attempt.node_log(0)))):
        received = int(found[1])
    if received is None:
        return None
    when = (
        "before the first step" if case.last_step() is None else "before there was a new checkpoint"
    )
    cause = f"{signal.Signals(received).name}{to} {when}; continues from the last checkpoint"
    if unresolved := case.unresolved():
        return case.outcome("preempted", f"{cause}; until then {unresolved}", _name_hint(case))
    return case.outcome("preempted", cause, None)


def death(case: Case) -> Outcome | None:
    """The rank that died without a word of its own."""
    rank = _dead_rank(case)
    if rank is None:
        return None
    code, log = case.exits.get(rank), case.log(rank)
    if code is None:
        cause = f"vanished from {case.host(rank)} without a word, and the others lost it"
        verdict: Verdict = "oom_host" if case.killed_for_memory() else "infrastructure"
        return case.outcome(verdict, cause, f"see {log}; {AGAIN}", rank)
    if code >= 0:
        cause = f"exited with status {code} and left no word"
        return case.outcome("user_error", cause, f"see the end of {log}", rank)
    if code == -signal.SIGKILL or code in ASKED:
        return _killed(case, rank, code)
    if code == -signal.SIGBUS:
        return _bus_error(case, rank)
    cause = f"crashed in native code ({signal.Signals(-code).name})"
    return case.outcome("user_error", cause, f"its Python stack is at the end of {log}", rank)


def _killed(case: Case, rank: int, code: int) -> Outcome:
    """A rank that a signal from outside ended. code: minus the signal's number."""
    name = signal.Signals(-code).name
    if code == -signal.SIGKILL and case.killed_for_memory():
        cause = f"killed by the kernel for its memory ({name})"
        return case.outcome("oom_host", cause, LESS_MEMORY, rank)
    kernel = ""
    if code == -signal.SIGKILL:
        kernel = f", or the kernel for want of memory: dmesg on {case.host(rank)} tells"
    return case.outcome("killed", f"killed by {name}", f"somebody sent it{kernel}; {AGAIN}", rank)


def _bus_error(case: Case, rank: int) -> Outcome:
    """A rank that read mapped memory which is not there: of a data file, else shared memory."""
    name = signal.SIGBUS.name
    stack = tail(case.log(rank)).rpartition("Fatal Python error")[2]
    if DATA_FOLDERS.search(stack):
        folder = (read_json(case.run.data_record) or {}).get("path", "the prepared data")
        hint = (
            f"a file that it had mapped became shorter, or its disk failed: remove {folder} and"
            " submit again"
        )
        return case.outcome("data", f"a data file could not be read ({name})", hint, rank)
    cause = f"{name}: memory that was promised is not there"
    return case.outcome("oom_host", cause, SHARED_MEMORY, rank)


def _dead_rank(case: Case) -> int | None:
    """Crashed or killed before vanished before asked to stop by somebody else than torchrun."""
    first = next(iter(case.exits), None)
    weights: dict[int, int] = {}
    for rank in range(case.world_size):
        code, spoke = case.exits.get(rank), rank in case.ranks
        if code is not None and code < 0 and code not in ASKED:
            # NCCL's own watchdog
            effect = code == -signal.SIGABRT and EFFECTS.search(tail(case.log(rank)))
            weights[rank] = 4 if effect else 0
        elif (code is not None and code > 0 and not spoke) or (
            code is None and not spoke and case.ranks
        ):
            weights[rank] = 1
        elif code in ASKED and rank == first:
            weights[rank] = 2
    found = [
        r for r in sorted(weights, key=lambda r: (weights[r], r != first, r)) if weights[r] < 4
    ]
    return found[0] if found else None


def effects(case: Case) -> Outcome | None:
    """Every rank tells of the others only: the network between them, or a collective that timed
    out.
    """
    if not case.ranks:
        return None
    words = next(iter(case.ranks.values()))
    if unresolved := case.unresolved():
        return case.outcome("infrastructure", unresolved, _name_hint(case), words["rank"])
    verdict: Verdict = "hang" if TIMED_OUT.search(words["message"]) else "infrastructure"
    hint = (
        f"all ranks lost each other on one machine: the end of {case.log(words['rank'])} may tell"
        f" why; {AGAIN}"
    )
    if case.has_several_nodes():
        hint = f"all ranks lost each other: the network between the nodes, or a node; {AGAIN}"
    return case.outcome(verdict, f"{words['type']}: {words['message']}", hint, words["rank"])


def _name_hint(case: Case) -> str:
    """What to try where a name does not resolve."""
    if case.has_several_nodes():
        return f"`getent hosts NAME` has to find it on every node, by DNS or /etc/hosts; {AGAIN}"
    return f"name it in /etc/hosts, as in `127.0.1.1 NAME`, or mend the machine's DNS; {AGAIN}"


def no_word(case: Case) -> Outcome:
    """No rank and no table says anything: what is known of torchrun, launch.node, and
    from Slurm.
    """
    witnesses = (_refused_by_engine, _memory, _full_disk, _by_slurms_log, _no_name, _by_torchrun)
    for witness in witnesses:
        outcome = witness(case)
        if outcome:
            return outcome
    if case.launcher is not None and case.launcher < 0:
        name = signal.Signals(-case.launcher).name
        return case.outcome("killed", f"launch.node was killed by {name}", AGAIN)
    ended = f"ended with status {case.launcher} and" if case.launcher is not None else ""
    why = "could not write" if ended else "was killed, or the machine went down"
    cause = f"launch.node on {case.host()} {ended} left no word: it {why}".replace("  ", " ")
    return case.outcome("killed", cause, AGAIN)


def _memory(case: Case) -> Outcome | None:
    if not case.killed_for_memory():
        return None
    return case.outcome("oom_host", "killed by the kernel for its memory", LESS_MEMORY)


def _full_disk(case: Case) -> Outcome | None:
    """The disk's message in the log of rank 0, or that it is full now."""
    in_log = FULL.search(tail(case.log(0)))
    full = in_log[0] if in_log else _no_room(case.run.path)
    if full is None:
        return None
    cause = f"the disk did not take the run's last checkpoint and outcome: {full}"
    return case.outcome("infrastructure", cause, f"make room; {AGAIN}")


def _by_slurms_log(case: Case) -> Outcome | None:
    """The last thing that Slurm wrote about the job."""
    words = case.slurm_log()
    said = {}
    for pattern, verdict, cause in SLURM:
        found = list(re.finditer(pattern, words))
        if found:
            said[found[-1].start()] = (verdict, cause)
    return case.outcome(*said[max(said)], AGAIN) if said else None


def _no_name(case: Case) -> Outcome | None:
    """A host name that does not resolve."""
    unresolved = case.unresolved()
    if not unresolved:
        return None
    return case.outcome("infrastructure", unresolved, _name_hint(case))


def _by_torchrun(case: Case) -> Outcome | None:
    """How torchrun ended on the first node."""
    status = case.nodes.get(0, {}).get("exit_status")
    if status is None:
        return None
    log = case.attempt.node_log(0)
    cause = f"no rank left a word (exit status {status})"
    if status < 0:
        cause = f"torchrun was killed by {signal.Signals(-status).name}"
    elif last := last_line(log):
        cause += f": {last}"
    return case.outcome("killed", cause, f"see {log}; {AGAIN}")


def _refused_by_engine(case: Case) -> Outcome | None:
    """What `docker run` could not start, in the engine's own words."""
    record = records.evidence(case.attempt.record, records.ATTEMPT) or {}
    status = case.nodes.get(0, {}).get("exit_status")
    if record.get("backend") != "docker" or status not in engine.REFUSALS:
        return None
    client = str((record.get("argv") or ["docker"])[0])
    line = engine.refusal(tail(case.attempt.node_log(0)))
    cause = f"{client} started no container (exit status {status}): {line or 'it printed nothing'}"
    return case.outcome("infrastructure", cause, engine.hint(line, client, case.run.run_id))


def _no_room(folder: Path) -> str | None:
    """That the disk is full now; the line of the log that would say it may have found no room
    itself.
    """
    found = os.statvfs(folder)
    return f"no space left in {folder}" if found.f_blocks and not found.f_bavail else None
