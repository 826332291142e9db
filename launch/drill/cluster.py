"""The drill on a cluster: one queued run is disturbed as clusters do it, goes on by itself, and is
compared with one in peace.

Nothing is killed by pid: what strikes comes from Slurm, or from the site's own command that cuts a
node's power. The run's attempts end and begin again without the drill's help; it only watches the
run's directory and the queue.
"""

from __future__ import annotations

import random
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from launch import slurm_commands
from launch.backends import queue
from launch.drill.kills import (
    REACH_S,
    Drill,
    DrillError,
    Kill,
    Killed,
    Result,
    compare,
    last_step,
    step_of_others,
)
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import Attempt, RunDir
from trainer.config.files.outcome import EXIT_DONE, Outcome

# by when a run that was disturbed has a new attempt: a requeued job waits, and so does a lost
# node's lease
QUEUE_S = 900.0


@dataclass(frozen=True)
class SlurmDrill(Drill):
    """preempt_with: sbatch options of a job that preempts the run's, as --qos=high. cut_with: a
    command that cuts the power of the node whose name follows it. timeout_min: the time limit of
    each disturbed attempt, which one strike in each round waits for; None: the job's.
    """

    preempt_with: str | None = None
    cut_with: str | None = None
    timeout_min: int | None = None

    def _strikes(self) -> dict[str, Callable[[str], None]]:
        """What can be done here to the run's job, the power cut last: after it a node is gone."""
        found: dict[str, Callable[[str], None]] = {"signal": signal, "requeue": requeue}
        if self.preempt_with:
            found = {"preempt": partial(preempt, self.preempt_with)}
        if self.timeout_min:
            found["timeout"] = lambda job: None  # comes by itself
        return {**found, "cut": partial(cut, self.cut_with)} if self.cut_with else found

    def carry_out(self, tell: Callable[[Killed], None]) -> Result:
        """Raises DrillError, and SlurmError where the queue does not answer."""
        self.clear()
        whole = self._whole()
        outcome = Outcome.read(whole.outcome)
        assert outcome is not None and outcome.global_step is not None
        strikes = plan(self.kills, self.seed, outcome.global_step, list(self._strikes()))
        self._queue("disturbed", max(1, outcome.global_step // (4 * self.kills)), self.timeout_min)
        run = RunDir(self.folder / "disturbed" / whole.run_id)
        killed, struck = [], set[str]()
        for strike in strikes:
            killed.append(self._disturb(run, strike, struck))
            tell(killed[-1])
        self._wait(run, "its end", REACH_S + QUEUE_S, lambda: _completed(run))
        left = [
            f"Slurm job {job} {state}"
            for job, state in queue.states([_job(run)]).items()
            if state.split()[0] == "PENDING"
        ]
        return compare(killed, whole, run, left)

    def _queue(self, which: str, every: int | None, timeout_min: int | None = None) -> None:
        limit = ["--set", f"resources.timeout_min={timeout_min}"] if timeout_min else []
        if self.submit(which, every, more=limit).wait() != EXIT_DONE:
            raise DrillError(
                f"the {which} run was not queued:\n{self.log(which).read_text(errors='replace')}"
            )

    def _whole(self) -> RunDir:
        self._queue("undisturbed", None)
        (config,) = (self.folder / "undisturbed").glob("*/config.json")
        run = RunDir(config.parent)
        self._wait(
            run, "the end of the undisturbed run", REACH_S + QUEUE_S, lambda: _completed(run)
        )
        return run

    def _wait(self, run: RunDir, what: str, most_s: float, condition: Callable[[], bool]) -> None:
        """Raises DrillError at the deadline, and where the run has ended in another way, or left
        the queue.
        """
        end, asked = time.monotonic() + most_s, 0.0
        while not condition():
            now = time.monotonic()
            outcome = Outcome.read(run.outcome)
            if outcome and outcome.status == "completed":
                raise DrillError(f"the run ended before {what}: fewer --kills, or more steps")
            if now > end:
                raise DrillError(f"{what} was not seen within {most_s:.0f} s; see {run.path}")
            if now - asked > 5:  # squeue costs the controller something
                asked = now
                if (
                    not queue.states([_job(run)])
                    and not condition()
                    and not queue.states([_job(run)])
                ):
                    cause = f": {outcome.verdict}: {outcome.cause}" if outcome else ""
                    raise DrillError(
                        f"the job of {run.run_id} left the queue before {what}{cause}; see"
                        f" {run.path}"
                    )
            time.sleep(0.02)

    def _disturb(self, run: RunDir, strike: Kill, struck: set[str]) -> Killed:
        """Waits for the step in an attempt that nothing has struck yet, strikes, and waits for the
        next attempt.
        """
        begun = time.monotonic()
        self._wait(
            run,
            f"step {strike.step}",
            REACH_S,
            lambda: _is_alive(run) and step_of_others(run, struck) >= strike.step,
        )
        attempt = run.all_attempts()[-1]
        struck.update(a.id for a in run.all_attempts())
        reached = last_step(run)
        self._strikes()[strike.kind](_job(run))
        self._wait(
            run,
            f"an attempt after {attempt.id}",
            QUEUE_S,
            lambda: attempt != run.all_attempts()[-1],
        )
        return Killed(strike, attempt.id, reached, time.monotonic() - begun)


def plan(strikes: int, seed: int, steps: int, kinds: list[str]) -> list[Kill]:
    """The kinds in turn, but one power cut and that at the end, at steps drawn in even parts of the
    run's first nine tenths: a cluster takes a while between two. Pure.
    """
    draw = random.Random(seed)
    part = steps * 0.9 / strikes
    others = [kind for kind in kinds if kind != "cut"]
    order = [others[i % len(others)] for i in range(strikes - ("cut" in kinds))] + ["cut"] * (
        "cut" in kinds
    )
    return [Kill(kind, int(part * (i + draw.uniform(0.2, 0.8))), 0) for i, kind in enumerate(order)]


def signal(job: str) -> None:
    """What a time limit's --signal and, where the site has it so, a preemption send."""
    slurm_commands.ask("scancel", "--signal=USR2", job, order=True)


def requeue(job: str) -> None:
    """An operator's requeue: TERM, and after KillWait the end."""
    slurm_commands.ask("scontrol", "requeue", job, order=True)


def preempt(options: str, job: str) -> None:
    """A job with other options that wants the whole node; it does nothing, once it has it."""
    argv = [
        "sbatch",
        "--parsable",
        "--output=/dev/null",
        "--job-name=batchyard-drill",
        "--exclusive",
        "--time=1",
    ]
    slurm_commands.ask(
        *argv, f"--nodelist={_nodes(job)}", *shlex.split(options), "--wrap=true", order=True
    )


def cut(command: str, job: str) -> None:
    _run([*shlex.split(command), _nodes(job).split(",")[-1]])


def _nodes(job: str) -> str:
    nodes = slurm_commands.ask("squeue", "-h", "-r", "-j", job, "-o", "%N").strip()
    if not nodes:
        raise DrillError(f"Slurm job {job} is on no node any more")
    return nodes


def _run(argv: list[str]) -> None:
    """The site's own command, in our environment; Slurm's have one of their own
    (launch.slurm_commands).
    """
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise DrillError(f"`{shlex.join(argv)}` failed ({done.returncode}): {done.stderr.strip()}")


def _job(run: RunDir) -> str:
    return str(read_json(run.slurm_job)["job_id"])


def _is_alive(run: RunDir) -> bool:
    """Whether the newest attempt has not ended: what strikes then would hit nobody."""
    attempts: list[Attempt] = run.all_attempts()
    return bool(attempts) and attempts[-1].record.exists() and not attempts[-1].outcome.exists()


def _completed(run: RunDir) -> bool:
    outcome = Outcome.read(run.outcome)
    return outcome is not None and outcome.status == "completed"
