"""Which attempts of a run start, and which follow by themselves: launch.node, with fake Slurm
commands.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch.runs import restarts
from launch.runs.restarts import MAX_PREEMPTED, next_start
from tests.cli import PROJECT, wait_for
from tests.test_node import fake, run_dir
from trainer.config.files import lock
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome, Status, Verdict

# the verdict, and Slurm's word
LIMIT, SIGNAL, PREEMPTED = ("timeout", False), ("preempted", False), ("preempted", True)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of its first submit, whose command leaves a file `ran` and fails for good."""
    words = '{"rank": 0, "time": 1.0, "type": "KeyError", "message": "x"}'
    script = (
        f"echo >> $0/ran; mkdir -p $0/attempts/$1/ranks; echo '{words}' >"
        " $0/attempts/$1/ranks/0.json; exit 1"
    )
    found = run_dir(tmp_path, ["sh", "-c", script, f"{tmp_path}/x-00000000", "{ATTEMPT}"])
    fake(tmp_path / "bin", "scontrol", f'test "$1" = show || echo "$@" >> {tmp_path}/ordered')
    fake(tmp_path / "bin", "squeue", "")
    submitted(found, 1)
    return found


def submitted(run: RunDir, generation: int) -> None:
    """As a submit leaves it."""
    write_json(run.plan, {**read_json(run.plan), "generation": generation})


def ended(
    run: RunDir,
    attempt_id: str,
    status: Status,
    verdict: Verdict,
    generation: int | None = 1,
    new_steps: int | None = 1,
) -> Outcome:
    """What an attempt before has left."""
    attempt = run.attempt(attempt_id)
    outcome = Outcome(
        status, verdict, attempt_id, "test", generation=generation, new_steps=new_steps
    )
    write_json(
        attempt.record,
        {"attempt": attempt_id, "started": len(run.all_attempts()), "generation": generation},
    )
    outcome.write(attempt.outcome)
    outcome.write(run.outcome)
    return outcome


def slurm_variables(
    run: RunDir, job: str = "7", restart: int = 1, node: int = 0, path: str = os.environ["PATH"]
) -> dict[str, str]:
    """The environment of a Slurm job. path: PATH, after the fake commands."""
    return {
        **os.environ,
        "PATH": f"{run.path.parent}/bin:{path}",
        "SLURM_JOB_ID": job,
        "SLURM_RESTART_COUNT": str(restart),
        "SLURM_NODEID": str(node),
        "SLURM_JOB_NODELIST": "n[1-2]",
    }


def start(
    run: RunDir, job: str = "7", restart: int = 1, node: int = 0, path: str = os.environ["PATH"]
) -> tuple[int, str]:
    """A start of a Slurm job on one node: its exit code, and what it printed."""
    environment = slurm_variables(run, job, restart, node, path)
    argv = [sys.executable, "-m", "launch.node", str(run.path), "--slurm"]
    done = subprocess.run(
        argv,
        cwd=PROJECT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def ran(run: RunDir) -> bool:
    return (run.path / "ran").exists()


@pytest.mark.parametrize(
    ("status", "verdict", "code"),
    [
        ("failed", "user_error", 1),
        ("failed", "timeout", 1),
        ("stopped", "cancelled", 75),
        ("stopped", "pruned", 0),
        ("completed", "completed", 0),
    ],
)
def test_a_job_that_slurm_starts_again_although_it_is_over_starts_nothing(
    run: RunDir, status: Status, verdict: Verdict, code: int
) -> None:
    """Slurm 24.11 requeues by itself what a preemption with a grace time has ended, also after exit
    0.
    """
    ended(run, "slurm-7.0", status, verdict)
    exit_code, printed = start(run)
    assert (exit_code, ran(run)) == (code, False), printed
    assert "slurm-7.1 starts nothing" in printed and "slurm-7.0" in printed
    assert not run.attempt("slurm-7.1").path.exists()  # the run stands where it stood


def test_a_cancelled_run_stays_cancelled(run: RunDir) -> None:
    """The cancel came in the grace time of a preemption, of which the attempt had its verdict."""
    ended(run, "slurm-7.0", "stopped", "preempted")
    write_json(run.cancel, {"time": 1.0, "attempt": "slurm-7.0"})
    exit_code, printed = start(run)
    assert (exit_code, ran(run)) == (75, False) and f"{run.run_id} is cancelled" in printed
    # nor on another node, whose exit code must end nothing
    assert start(run, node=1) == (0, printed)
    assert not run.attempt("slurm-7.1").path.exists()


@pytest.mark.parametrize("verdict", ["preempted", "timeout", "infrastructure", "hang", "killed"])
def test_what_continues_by_itself_starts(run: RunDir, verdict: Verdict) -> None:
    ended(run, "slurm-7.0", "stopped" if verdict in ("preempted", "timeout") else "failed", verdict)
    assert start(run)[0] == 1 and ran(run)
    left = Outcome.read(run.outcome)
    assert left and (left.attempt, left.verdict, left.generation) == ("slurm-7.1", "user_error", 1)
    assert read_json(run.attempt("slurm-7.1").record)["generation"] == 1


def test_what_has_used_up_its_retries_starts_nothing(run: RunDir) -> None:
    for restart in (0, 1):
        ended(run, f"slurm-7.{restart}", "failed", "killed")
    exit_code, printed = start(run, restart=2)
    assert (exit_code, ran(run)) == (1, False) and "slurm-7.1 ended as failed (killed)" in printed


@pytest.mark.parametrize("verdict", ["user_error", "pruned", "cancelled"])
def test_a_run_that_is_submitted_again_runs(run: RunDir, verdict: Verdict) -> None:
    ended(run, "slurm-7.0", "failed" if verdict == "user_error" else "stopped", verdict)
    submitted(run, 2)
    exit_code, printed = start(run)  # the job of the submit before, which Slurm starts again
    assert (exit_code, ran(run)) == (75, False) and "was submitted again since" in printed
    assert start(run, job="8", restart=0)[0] == 1 and ran(run)
    assert read_json(run.attempt("slurm-8.0").record)["generation"] == 2
    assert Outcome.read(run.outcome).generation == 2  # type: ignore[union-attr]


def test_only_a_completed_run_stops_a_later_submit(run: RunDir) -> None:
    ended(run, "slurm-7.0", "completed", "completed")
    submitted(run, 2)
    assert start(run, job="8", restart=0)[0] == 0 and not ran(run)


@pytest.mark.parametrize("counted", [None, 1])
def test_outcomes_of_a_version_that_counted_no_submits_stop_nothing(
    run: RunDir, counted: int | None
) -> None:
    ended(run, "slurm-7.0", "failed", "user_error", generation=None)
    if counted is None:
        write_json(run.plan, {k: v for k, v in read_json(run.plan).items() if k != "generation"})
    assert start(run, job="8", restart=0)[0] == 1 and ran(run)


def test_another_node_never_decides_from_what_its_own_attempt_left(run: RunDir) -> None:
    """It comes when the first one has done its part: it leaves its record, which that one waits
    for.
    """
    ended(run, "slurm-7.1", "failed", "user_error")
    assert start(run, node=1)[0] == 0
    assert read_json(run.attempt("slurm-7.1").node_record(1))["exit_status"] == 0
    run.attempt("slurm-7.1").node_record(1).unlink()
    ended(run, "slurm-7.1", "completed", "completed")
    assert start(run, node=1)[0] == 0 and run.attempt("slurm-7.1").node_record(1).exists()


def test_each_submit_raises_the_generation(run: RunDir) -> None:
    assert restarts.next_generation(RunDir(run.path / "none")) == 1
    assert restarts.next_generation(run) == 2
    ended(run, "slurm-7.0", "failed", "user_error", generation=5)
    assert restarts.next_generation(run) == 6
    run.plan.write_text("{")  # a full disk
    assert restarts.next_generation(run) == 6


def in_a_row(*ends: tuple[Verdict, bool], new_steps: int = 0) -> list[Outcome]:
    return [
        Outcome(
            "stopped",
            verdict,
            f"slurm-7.{n}",
            "test",
            cause="USR2",
            new_steps=new_steps,
            preempted_by_slurm=confirmed,
        )
        for n, (verdict, confirmed) in enumerate(ends)
    ]


@pytest.mark.parametrize(
    "ends",
    [
        (LIMIT, LIMIT, LIMIT),
        (SIGNAL, SIGNAL, SIGNAL),
        (SIGNAL, LIMIT, SIGNAL),
        (LIMIT, PREEMPTED, LIMIT, LIMIT),
    ],
)
def test_three_attempts_without_a_step_and_without_a_preemption_are_enough(
    ends: tuple[tuple[Verdict, bool], ...],
) -> None:
    *earlier, last = in_a_row(*ends)
    found = next_start(last, earlier, {"time": 1, "signal_delay_s": 30})
    assert not found.follows and (found.outcome.status, found.outcome.verdict) == (
        "failed",
        "timeout",
    )
    assert (
        found.outcome.cause
        and "3 attempts in a row ended before a first new step" in found.outcome.cause
    )
    assert found.outcome.hint and "raise resources.timeout_min, which is 1," in found.outcome.hint
    assert not next_start(found.outcome, earlier, {}).follows  # Slurm may ask again


@pytest.mark.parametrize(
    "earlier",
    [
        in_a_row(LIMIT),
        [*in_a_row(LIMIT, LIMIT), *in_a_row(LIMIT, new_steps=1)],
        [*in_a_row(SIGNAL, SIGNAL, SIGNAL, new_steps=9)],
        in_a_row(LIMIT, *[PREEMPTED] * 5),
    ],
)
def test_a_long_run_under_a_short_limit_goes_on(earlier: list[Outcome]) -> None:
    (last,) = in_a_row(LIMIT)
    assert next_start(last, earlier, {}) == restarts.NextStart(last, follows=True)


def test_what_an_older_version_wrote_counts_as_steps() -> None:
    unknown = [Outcome("stopped", "timeout", f"slurm-7.{n}", "test") for n in range(4)]
    assert next_start(unknown[-1], unknown[:-1], {}).follows
    assert next_start(
        in_a_row(LIMIT)[0], [*in_a_row(LIMIT), unknown[0], *in_a_row(LIMIT)], {}
    ).follows


def test_preemptions_without_a_step_are_counted_delayed_and_never_a_failure() -> None:
    earlier: list[Outcome] = []
    delays = []
    for last in in_a_row(*[PREEMPTED] * (MAX_PREEMPTED - 1)):
        found = next_start(last, earlier, {})
        assert found.follows
        delays.append(found.delay_s)
        earlier.append(found.outcome)
    assert delays[:4] == [0, 240, 480, 960] and delays == sorted(delays) and delays[-1] == 3600
    assert (
        earlier[2].cause
        and "3 times in a row without a new step; it starts again in 8 min" in earlier[2].cause
    )
    found = next_start(in_a_row(PREEMPTED)[0], earlier, {})
    assert not found.follows and found.outcome.status == "stopped"
    assert found.outcome.cause and "20 times in a row" in found.outcome.cause and found.outcome.hint
    assert (
        next_start(
            in_a_row(PREEMPTED)[0], [*earlier[:-1], *in_a_row(PREEMPTED, new_steps=1)], {}
        ).delay_s
        == 0
    )


def stops(run: RunDir, step: int) -> None:
    """The run's command stops as a trainer does that was asked to, at that step."""
    own = run.path.parent / "own.json"
    Outcome("stopped", "preempted", "any", "trainer rank 0", step, cause="asked to stop").write(own)
    write_json(
        run.plan,
        {
            **read_json(run.plan),
            "argv": [shutil.which("cp"), str(own), f"{run.path}/attempts/{{ATTEMPT}}/outcome.json"],
            "slurm": {"time": 1, "signal_delay_s": 30},
        },
    )


def ordered(run: RunDir) -> list[str]:
    orders = run.path.parent / "ordered"
    return orders.read_text().splitlines() if orders.exists() else []


def test_a_limit_below_the_start_is_told_after_three_attempts(run: RunDir) -> None:
    """24 attempts "preempted before the first step", without end."""
    stops(run, 0)
    assert [start(run, restart=n)[0] for n in range(3)] == [75, 75, 1]
    assert ordered(run) == ["requeue 7"] * 2
    left = Outcome.read(run.outcome)
    assert left and (left.status, left.verdict, left.new_steps) == ("failed", "timeout", 0)
    assert start(run, restart=3)[0] == 1 and len(ordered(run)) == 2
    submitted(run, 2)
    stops(run, 5)
    # no checkpoint, but a trainer's word of new steps
    assert [start(run, "8", restart=n)[0] for n in range(4)] == [75] * 4


def test_what_the_trainer_left_of_an_attempt_stays_as_it_is(run: RunDir) -> None:
    """launch.node wrote the file once more, to add what it alone knows: by another user's hand."""
    stops(run, 3)
    written = (run.path.parent / "own.json").read_text().replace("\n", " ")
    (run.path.parent / "own.json").write_text(written)

    assert start(run, restart=0)[0] == 75

    attempt = run.attempt("slurm-7.0")
    assert attempt.outcome.read_text() == written
    record = read_json(attempt.record)
    assert (record["generation"], record["new_steps"], record["preempted_by_slurm"]) == (
        1,
        3,
        False,
    )
    assert Outcome.read(run.outcome).new_steps == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("place", ["attempt.json", "outcome.json"])
def test_what_launch_node_knows_of_an_attempt_is_read_of_this_and_earlier_versions(
    run: RunDir, place: str
) -> None:
    ended(run, "slurm-7.0", "stopped", "preempted", generation=None, new_steps=None)
    file = run.attempt("slurm-7.0").path / place
    known = {"generation": 4, "new_steps": 0, "preempted_by_slurm": True}
    write_json(file, {**read_json(file), **known})

    ((_, found),) = restarts.ended_attempts(run, "slurm-7.1", 4)

    assert found.of_node() == known


def test_a_preemption_without_a_step_is_delayed(run: RunDir) -> None:
    orders = run.path.parent / "ordered"
    shown = "JobId=7 JobState=RUNNING PreemptTime=2031-02-03T04:05:06"
    fake(
        run.path.parent / "bin",
        "scontrol",
        f'if [ "$1" = show ]; then echo "{shown}"; else echo "$@" >> {orders}; fi',
    )
    stops(run, 0)
    assert [start(run, restart=n)[0] for n in range(2)] == [75, 75]
    assert ordered(run) == ["requeue 7", "requeue 7", "update JobId=7 StartTime=now+240"]
    left = Outcome.read(run.outcome)
    assert (
        left
        and left.preempted_by_slurm
        and left.cause
        and "2 times in a row without a new step" in left.cause
    )


def refuse_requeue(run: RunDir, sbatch: str) -> None:
    """As a site that switched requeues off answers. sbatch: its script; empty: there is none."""
    words = "Requested operation is presently disabled for job 7"
    fake(
        run.path.parent / "bin",
        "scontrol",
        f'test "$1" = requeue || exit 0; echo "{words}" >&2; exit 1',
    )
    if sbatch:
        fake(run.path.parent / "bin", "sbatch", sbatch)
    run.attempt("slurm-7.0").path.mkdir(parents=True)
    run.attempt("slurm-7.0").script.write_text("#!/bin/sh\n")


def test_where_a_requeue_is_refused_another_job_follows(run: RunDir) -> None:
    queued = run.path.parent / "queued"
    refuse_requeue(run, f'echo "$@" >> {queued}; expr 11 + $(wc -l < {queued})')
    stops(run, 5)
    exit_code, printed = start(run, restart=0)
    assert exit_code == 75 and "Slurm job 12 goes on with" in printed
    assert "--dependency=afterany:7" in queued.read_text()
    assert read_json(run.slurm_job)["job_id"] == "12" and read_json(run.slurm_job)["follows"] == [
        "7"
    ]
    left = Outcome.read(run.outcome)
    assert left and left.cause == "asked to stop"
    exit_code, printed = start(run, "12", restart=0)  # of the same submit
    assert exit_code == 75, printed


@pytest.mark.parametrize("slurm", ["refuses all", "is not here"])
def test_where_nothing_follows_the_outcome_says_so(run: RunDir, slurm: str) -> None:
    """A node without scontrol: a traceback, and FAILED; a refused requeue: FAILED, and `why`
    silent.
    """
    if slurm == "refuses all":
        refuse_requeue(run, 'echo "sbatch: error: Access/permission denied" >&2; exit 1')
        whys = ["presently disabled for job 7", "Access/permission denied"]
    else:
        for tool in ("scontrol", "squeue"):
            (run.path.parent / "bin" / tool).unlink()
        run.attempt("slurm-7.0").path.mkdir(parents=True)
        run.attempt("slurm-7.0").script.write_text("#!/bin/sh\n")
        whys = ["there is no scontrol here", "there is no sbatch here"]
    stops(run, 5)
    exit_code, printed = start(
        run, restart=0, path="/usr/bin:/bin" if slurm == "refuses all" else "/bin/none"
    )
    assert exit_code == 75 and "Traceback" not in printed
    for path in (run.outcome, run.attempt("slurm-7.0").outcome):
        left = Outcome.read(path)
        assert left and (left.status, left.verdict, left.global_step) == ("stopped", "preempted", 5)
        assert left.cause and all(why in left.cause for why in ("nothing follows", *whys))
        assert left.hint and f"`batchyard submit {run.run_id}` continues it" in left.hint


@pytest.mark.parametrize(
    ("shown", "code", "orders"),
    [
        # of a scancel
        ("JobState=COMPLETING Reason=None Restarts=1 EndTime=2026-02-03T04:05:06", 75, []),
        ("JobState=CANCELLED Reason=None Restarts=1 EndTime=2026-02-03T04:05:06", 75, []),
        # the limit is near
        ("JobState=RUNNING Reason=None Restarts=1 EndTime=2031-02-03T04:05:06", 75, ["requeue 7"]),
    ],
)
def test_a_scancel_while_a_lost_nodes_lease_is_waited_for_ends_the_job(
    run: RunDir, shown: str, code: int, orders: list[str]
) -> None:
    """It requeued itself, and ran."""
    ended(run, "slurm-7.0", "stopped", "preempted")
    write_json(
        run.lock, {**lock.me(), "host": "n1", "boot": "of another machine", "attempt": "slurm-7.0"}
    )
    log = run.path.parent / "ordered"
    fake(
        run.path.parent / "bin",
        "scontrol",
        f'if [ "$1" = show ]; then echo "JobId=7 {shown}"; else echo "$@" >> {log}; fi',
    )
    argv = [sys.executable, "-m", "launch.node", str(run.path), "--slurm"]
    process = subprocess.Popen(
        argv, cwd=PROJECT, env=slurm_variables(run), stdin=subprocess.DEVNULL
    )
    wait_for("its attempt", run.attempt("slurm-7.1").path.exists)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == code and ordered(run) == orders and not ran(run)
    left = Outcome.read(run.attempt("slurm-7.1").outcome)
    if orders:
        assert left is None
    else:
        assert left and (left.status, left.verdict, left.generation) == ("stopped", "cancelled", 1)
        run.lock.unlink()  # the lease is over
        assert start(run, restart=2) == (
            75,
            (
                f"{run.run_id} is over: slurm-7.1 ended as stopped (cancelled); "
                f"`batchyard submit {run.run_id}` continues it; slurm-7.2 starts nothing\n"
            ),
        )
