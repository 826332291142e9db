"""Which attempt of a run may start, and which one another follows by itself.

Standard library only: nodes read it.

Each submit of a run has a number, its generation, which stands in plan.json. Its attempts record
it in attempt.json: a run that failed for good, and is submitted again, runs; one that Slurm starts
again, although it is over, ends at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config.files.json_files import read_json
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import EXIT_STOPPED, OF_NODE, Outcome, retries

FIRST_GENERATION = 1
# attempts in a row that time limits, or nobody knows what, ended before a first new step
MAX_WITHOUT_STEP = 3
# likewise of preemptions that Slurm confirms: the cluster is busy, and nothing is wrong with the
# job
MAX_PREEMPTED = 20
FIRST_DELAY_S = 240  # Slurm itself lets 121 s pass after a requeue
MAX_DELAY_S = 3600


@dataclass(frozen=True)
class Over:
    """Why an attempt starts nothing. exit_code: batchyard's."""

    reason: str
    exit_code: int


@dataclass(frozen=True)
class NextStart:
    """What follows an attempt. outcome: how it ended, in the words of the rule; follows: whether
    the cluster shall start the run again by itself, and not before `delay_s` from now.
    """

    outcome: Outcome
    follows: bool
    delay_s: int = 0


def next_start(outcome: Outcome, earlier: Sequence[Outcome], slurm: dict[str, Any]) -> NextStart:
    """What follows an attempt that ended so. earlier: how those before it ended, of the same
    generation, the oldest first; slurm: the plan's parameters, for what to raise.

    Attempts that stop at a limit, or by preemptions, follow each other for ever, but not where none
    makes a new step.
    """
    follows = retries(outcome.budget, [end.budget for end in earlier])
    if not follows or outcome.verdict not in ("preempted", "timeout"):
        return NextStart(outcome, follows)
    if outcome.status == "failed":  # by this rule
        return NextStart(outcome, follows=False)

    without_step = _in_a_row_without_step(outcome, earlier)
    preempted = sum(end.preempted_by_slurm for end in without_step)
    others = len(without_step) - preempted
    if others >= MAX_WITHOUT_STEP:
        return NextStart(_too_short(outcome, others, slurm), follows=False)
    if preempted < 2 or not outcome.preempted_by_slurm:
        return NextStart(outcome, follows=True)

    cause = f"preempted by another job, {preempted} times in a row without a new step"
    if preempted >= MAX_PREEMPTED:
        cause += "; it is not started again by itself"
        hint = (
            "submit it again where, or when, it is preempted less: slurm.partition and slurm.qos in"
            " the site file"
        )
        return NextStart(replace(outcome, cause=cause, hint=hint), follows=False)
    delay_s = min(FIRST_DELAY_S * 2 ** (preempted - 2), MAX_DELAY_S)
    cause += f"; it starts again in {delay_s // 60} min at the earliest"
    return NextStart(replace(outcome, cause=cause), follows=True, delay_s=delay_s)


def _in_a_row_without_step(outcome: Outcome, earlier: Sequence[Outcome]) -> list[Outcome]:
    """The newest ends by a limit or a preemption, as far back as no attempt is known to have made,
    and kept, a new step.
    """
    found = []
    for end in (outcome, *reversed(earlier)):
        if end.new_steps != 0:
            break
        if end.verdict in ("preempted", "timeout"):
            found.append(end)
    return found


def _too_short(outcome: Outcome, times: int, slurm: dict[str, Any]) -> Outcome:
    cause = (
        f"{times} attempts in a row ended before a first new step, and not by a preemption that"
        " Slurm knows of"
    )
    hint = "raise resources.timeout_min"
    if "time" in slurm and "signal_delay_s" in slurm:
        hint += (
            f", which is {slurm['time']}, or lower slurm.grace_s in the site file: the start alone"
            " takes longer than "
        )
        hint += f"the {60 * slurm['time'] - slurm['signal_delay_s']} s that are left for it"
    last = (outcome.cause or "no cause is known").partition(";")[0]
    return replace(
        outcome, status="failed", verdict="timeout", cause=f"{cause}; the last: {last}", hint=hint
    )


def next_generation(run: RunDir) -> int:
    """The generation of a submit that begins now: above that of each submit before."""
    known = [
        recorded_generation(run.plan),
        *(recorded_generation(a.record) for a in run.all_attempts()),
    ]
    return max((found for found in known if found is not None), default=FIRST_GENERATION - 1) + 1


def recorded_generation(path: Path) -> int | None:
    """The generation in plan.json or attempt.json; None where a version wrote it that
    counted none.
    """
    found = read_json(path)
    generation = found.get("generation") if isinstance(found, dict) else None
    return generation if isinstance(generation, int) else None


def generation_of(run: RunDir, attempt_id: str) -> int | None:
    """The submit that an attempt belongs to: that of its Slurm job's first start, else the newest
    one. None: of a version that counted none.
    """
    job, _, restart = attempt_id.rpartition(".")
    restarts = int(restart) if restart.isdigit() else 0
    earlier = (recorded_generation(run.attempt(f"{job}.{n}").record) for n in range(restarts))
    return next((found for found in earlier if found is not None), recorded_generation(run.plan))


def ended_attempts(
    run: RunDir, attempt_id: str, generation: int | None
) -> list[tuple[Attempt, Outcome]]:
    """The other attempts of that generation that left an outcome, the oldest first.

    Where none was counted: those of the same Slurm job, and of the jobs that it follows.
    """
    follows = (read_json(run.slurm_job) or {}).get("follows", ())
    jobs = {attempt_id.rpartition(".")[0], *(f"slurm-{job}" for job in follows)}
    found = []
    for attempt in run.all_attempts():
        outcome = None if attempt.id == attempt_id else _end_of(attempt)
        if outcome is None:
            continue
        own = outcome.generation
        if (attempt.id.rpartition(".")[0] in jobs) if generation is None else own == generation:
            found.append((attempt, outcome))
    return found


def _end_of(attempt: Attempt) -> Outcome | None:
    """How the attempt ended, with what launch.node alone knows of it: of attempt.json, else of the
    outcome, as versions before left it.
    """
    outcome = Outcome.read(attempt.outcome)
    record = read_json(attempt.record)
    if outcome is None or not isinstance(record, dict):
        return outcome
    known = {key: record[key] for key in OF_NODE if record.get(key) is not None}
    return replace(outcome, **known)


def already_over(run: RunDir, attempt_id: str, *, first_node: bool) -> Over | None:
    """The first act of every attempt on every node: whether, and why, it starts nothing.

    None: it starts.

    The other nodes may come when the first one has done its part: what their own attempt left
    decides nothing.
    """
    outcome = Outcome.read(run.outcome)
    if outcome and outcome.status == "completed" and (first_node or outcome.attempt != attempt_id):
        return Over(f"is completed already (attempt {outcome.attempt})", outcome.exit_code)
    if not first_node and run.attempt(attempt_id).record.exists():
        return None  # the first node has started it
    if run.cancel.exists():
        again = f"`batchyard submit {run.run_id}` continues it"
        return Over(f"is cancelled; {again}", EXIT_STOPPED)
    generation = generation_of(run, attempt_id)
    return None if generation is None else _over_in_generation(run, attempt_id, generation)


def _over_in_generation(run: RunDir, attempt_id: str, generation: int) -> Over | None:
    """Why an attempt of that submit starts nothing: by a newer submit, or by its own attempts'
    ends.
    """
    newest = recorded_generation(run.plan)
    if newest is not None and generation < newest:
        return Over("was submitted again since: that attempt runs it", EXIT_STOPPED)
    ended = ended_attempts(run, attempt_id, generation)
    if not ended:
        return None
    last, end = ended[-1]
    if next_start(end, [before for _, before in ended[:-1]], {}).follows:
        return None
    again = f"`batchyard submit {run.run_id}` continues it"
    return Over(f"is over: {last.id} ended as {end.status} ({end.verdict}); {again}", end.exit_code)
