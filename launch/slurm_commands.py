"""How Slurm's commands are run: in which environment, for how long, and what they must print.

Standard library only, for compute nodes use it, too. Each Slurm command reads dozens of variables,
which override what a script or an option says: SBATCH_TIMELIMIT changes a job, SQUEUE_STATES makes
living jobs look gone, and within a Slurm job there are those of that job. So nothing but the way
to the controller is taken along.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time

from launch.errors import Failed, Wrong

# How a command finds the controller and shows who asks. All other variables with one of the
# prefixes decide what a job gets, or what an answer contains.
CONNECTION = (
    "SLURM_CONF",
    "SLURM_CONF_SERVER",
    "SLURM_JWT",
    "SLURM_SACK_KEY",
    "SLURM_SACK_JWKS",
    "SLURM_SACK_SOCKET",
)
PREFIXES = (
    "SLURM_",
    "SLURMD_",
    "SBATCH_",
    "SRUN_",
    "SALLOC_",
    "SQUEUE_",
    "SCANCEL_",
    "SCONTROL_",
    "SACCT_",
    "SACCTMGR_",
    "SINFO_",
    "SSTAT_",
)

# What a cluster sets for everybody who submits there, and the option of sbatch that it means. It
# goes into the script where the site file is silent.
SITE_VARIABLES = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "reservation",
    "SBATCH_WCKEY": "wckey",
}

# For a question. With the controller away squeue gives up by itself after 10 s, scontrol after 20.
ANSWER_S = 30.0
ANSWER_VARIABLE = "BATCHYARD_SLURM_ANSWER_S"  # another limit, where a cluster is slower
ORDER_FACTOR = 4  # sbatch, scancel and requeue may take longer: they are not repeated lightly

# sbatch gave up waiting although the controller may have taken the job, which then shows a moment
# later.
UNCERTAIN = re.compile(
    r"timed out|no answer|unable to contact|connection|transport|zero byte", re.I
)
LOOKS, LOOK_EVERY_S = 5, 1.0


class SlurmError(Failed):
    """A Slurm command failed; the message shows it and what it printed."""


class NoAnswer(SlurmError):
    """A Slurm command is not here, or did not end within its time."""


class NotHere(NoAnswer):
    """This machine has no such command: it is none of a cluster's."""


class OtherCluster(Wrong):
    """A variable sends Slurm's commands to another cluster; the message names it."""


class Refused(SlurmError):
    """Slurm took no job; the message says why, in its words."""


class Lost(SlurmError):
    """Slurm took a job that cannot be found; the message has what sbatch printed
    instead of its id.
    """


def environment() -> dict[str, str]:
    """The environment of every Slurm command, which is that of the job, too, that sbatch submits.

    It is ours without what decides for Slurm.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith(PREFIXES) or k in CONNECTION}


def site_variables() -> dict[str, str]:
    """The variables of a cluster for all who submit there, by name, with their values."""
    return {name: os.environ[name] for name in SITE_VARIABLES if os.environ.get(name)}


def unused_variables() -> list[str]:
    """The names of the other variables that sbatch would take options from. They do not count."""
    return sorted(
        name for name in os.environ if name.startswith("SBATCH_") and name not in SITE_VARIABLES
    )


def refuse_other_cluster(*, submitting: bool = False) -> None:
    """Raises OtherCluster. A run's jobs are looked for where they were submitted: on this one."""
    for name in ("SLURM_CLUSTERS", *(["SBATCH_CLUSTERS"] if submitting else [])):
        if os.environ.get(name):
            raise OtherCluster(
                f"{name}={os.environ[name]} in the environment names a cluster to ask; Batchyard "
                "submits to the cluster that it runs on, and finds its jobs on that one alone: "
                f"`unset {name}`, and work on a login node of the cluster that you mean"
            )


def answer_s() -> float:
    """Seconds that a question to Slurm may take. Raises SlurmError where the variable has none."""
    given = os.environ.get(ANSWER_VARIABLE)
    if not given:
        return ANSWER_S
    with contextlib.suppress(ValueError):
        if 0 < float(given) < 86400:
            return float(given)
    raise SlurmError(f"{ANSWER_VARIABLE}={given}: expected seconds, more than 0, as in 60")


def run(
    *argv: str, order: bool = False, limit_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a Slurm command to its end, and returns how it ended, whatever its status.

    order: it changes something, and may take longer than a question. limit_s: another time limit.
    Raises NoAnswer, and SlurmError where our own limit is no number.
    """
    limit_s = limit_s or answer_s() * (ORDER_FACTOR if order else 1)
    given = environment()
    if argv[0] != "sbatch":  # its environment is the job's, which may need letters beyond ASCII
        given["LC_ALL"] = "C"
    try:
        process = subprocess.Popen(
            argv,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except FileNotFoundError:
        raise NotHere(f"there is no {argv[0]} here") from None
    except OSError as error:
        raise NoAnswer(f"`{shlex.join(argv)}`: {error.strerror}") from None
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        _kill(process)
        raise NoAnswer(f"`{shlex.join(argv)}` gave no answer within {limit_s:g} s") from None
    except BaseException:  # Ctrl-C, which does not reach the command's own session
        _kill(process)
        raise
    return subprocess.CompletedProcess(argv, process.returncode, out, err)


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends the command and what it started, which may hold our pipes: sites wrap such commands."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel
        process.communicate(timeout=1)


def ask(*argv: str, order: bool = False) -> str:
    """What a Slurm command prints. Raises SlurmError where it fails: an empty answer is another."""
    done = run(*argv, order=order)
    if done.returncode:
        raise SlurmError(f"`{shlex.join(argv)}` failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout


def look(*argv: str, limit_s: float | None = None) -> str:
    """What a Slurm command prints, whatever its status; nothing where it does not answer."""
    with contextlib.suppress(SlurmError):
        return run(*argv, limit_s=limit_s).stdout
    return ""


def job_id(printed: str) -> str | None:
    """The job's id in what `sbatch --parsable` printed; None where that is anything else."""
    found = re.fullmatch(r"(\d+)(;[\w.-]+)?", printed.strip())
    return found[1] if found else None


def find(token: str) -> str | None:
    """The job (of an array, its id) whose comment holds the token, also if it ended a moment ago.

    None: there is none. Raises SlurmError.
    """
    for line in ask("squeue", "-h", "-t", "all", "-o", "%i|%k").splitlines():
        job, _, comment = line.partition("|")
        if token in comment:
            return job.split("_")[0]
    return None


def submit(token: str, *argv: str) -> str:
    """Submits a job, whose comment holds the token, and returns its id. argv: sbatch's arguments.

    Raises Refused where Slurm took no job, Lost where it took one, and SlurmError where that is not
    certain.
    """
    try:
        done = run("sbatch", "--parsable", *argv, order=True)
    except NotHere:
        raise  # then there is no job to look for
    except NoAnswer as error:
        done = subprocess.CompletedProcess(argv, 1, "", str(error))
    accepted = done.returncode == 0
    job = job_id(done.stdout) if accepted else None
    if job:
        return job

    # it may have been accepted all the same
    printed = (done.stdout if accepted else done.stderr or done.stdout).strip()
    uncertain = accepted or UNCERTAIN.search(printed) is not None
    looks = LOOKS if uncertain else 1
    for number in range(looks):
        if found := find(token):
            return found
        time.sleep(LOOK_EVERY_S if number + 1 < looks else 0)

    if accepted:
        raise Lost(
            f"expected the job's id from `sbatch --parsable`, found {printed[:500]!r}; squeue shows"
            " no job of this submit: it may be on another cluster; look there for a job with the"
            f" comment {token}"
        )
    if uncertain:
        raise SlurmError(
            "sbatch failed, and squeue shows no job of this submit; submit again once Slurm "
            f"answers:\n{printed}"
        )
    raise Refused(f"sbatch refused the job:\n{printed}")
