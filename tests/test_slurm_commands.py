"""Slurm's commands: what decides them, how long they may take, what is taken for an answer.

The commands are fake ones.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launch import slurm_commands
from launch.backends import slurm, standings
from launch.node import requeue
from launch.plan import build as planning
from launch.runs.state import slurm_job
from tests.cli import PROJECT, Shell, wait_for
from trainer.config.files.json_files import write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome

# Each changed a job, or an answer, of a command that was given all of our environment.
DECIDING = {
    "SBATCH_TIMELIMIT": "1",
    "SBATCH_NO_REQUEUE": "1",
    "SBATCH_ARRAY_INX": "0-2",
    "SBATCH_EXPORT": "NONE",
    "SBATCH_MEM_PER_NODE": "64",
    "SLURM_EXPORT_ENV": "NONE",
    "SLURM_MEM_PER_NODE": "64",
    "SLURM_ARRAY_TASK_ID": "5",
    "SLURM_ARRAY_JOB_ID": "3",
    "SLURM_RESTART_COUNT": "2",
    "SLURM_TIME_FORMAT": "relative",
    "SQUEUE_STATES": "RUNNING",
    "SRUN_CPUS_PER_TASK": "7",
    "SCANCEL_INTERACTIVE": "1",
    "SCONTROL_FUTURE": "1",
    "SACCT_FORMAT": "jobid",
    "SINFO_PARTITION": "x",
}
KEPT = {
    "SLURM_CONF": "/etc/x.conf",
    "SLURM_JWT": "secret",
    "WANDB_API_KEY": "k",
    "LC_ALL": "C.UTF-8",
}
TOKEN = "batchyard:0123"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fake Slurm commands, first on PATH; empty."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def fake(tools: Path, name: str, script: str) -> None:
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)


@pytest.fixture
def queued(tmp_path: Path) -> RunDir:
    """A run that was queued as Slurm job 7 and has not started."""
    run = RunDir(tmp_path / "runs" / "a-01234567")
    write_json(run.config, {"job": "a"})
    write_json(run.slurm_job, {"job_id": "7", "logs": str(run.slurm)})
    return run


@pytest.mark.parametrize("command", ["sbatch", "squeue", "scontrol", "scancel", "sacct"])
def test_no_variable_decides_what_a_command_does(
    tools: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name, value in (DECIDING | KEPT).items():
        monkeypatch.setenv(name, value)
    fake(tools, command, "env")
    seen = dict(line.split("=", 1) for line in slurm_commands.ask(command).splitlines())
    assert not set(DECIDING) & set(seen)
    language = "C.UTF-8" if command == "sbatch" else "C"  # sbatch's environment is the job's
    assert {name: seen[name] for name in KEPT} == {**KEPT, "LC_ALL": language}
    assert seen["HOME"] == os.environ["HOME"] and seen["PATH"] == os.environ["PATH"]


def test_what_a_cluster_sets_for_all_is_in_the_script_and_shown(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("backend: slurm\nslurm: {partition: long}\n")
    theirs = {
        "SBATCH_ACCOUNT": "physics",
        "SBATCH_RESERVATION": "course",
        "SBATCH_PARTITION": "short",
    }
    shell = Shell(
        tmp_path / "runs",
        env=(*theirs.items(), ("SBATCH_TIMELIMIT", "1"), ("SUBMITIT_PREEMPT_SIGNAL", "KILL")),
    )
    printed = shell.run("show", "digits", "--site", str(site))
    script = [line for line in printed.splitlines() if line.startswith("#SBATCH")]
    for line in (
        "--account=physics",
        "--reservation=course",
        "--partition=long",
        "--time=10",
        "--signal=USR2@120",
    ):
        assert f"#SBATCH {line}" in script
    for note in (
        "account physics comes from SBATCH_ACCOUNT in the environment",
        "SBATCH_PARTITION=short in the environment is not used: the site file says long",
        "SBATCH_TIMELIMIT in the environment: not used",
    ):
        assert f"note       {note}" in printed
    local = shell.run("show", "digits")
    assert "SBATCH_" not in local


def test_the_submit_of_a_sweep_says_likewise(tools: Path, tmp_path: Path) -> None:
    fake(tools, "sbatch", f"env > {tmp_path}/seen; echo 9")
    fake(tools, "squeue", "exit 0")
    fake(tools, "scontrol", "exit 1")
    theirs = {"SBATCH_ACCOUNT": "physics", "SBATCH_ARRAY_INX": "0-9"}
    shell = Shell(tmp_path / "runs", env=tuple(theirs.items()))
    axis = "sweep.grid.train.seed=[0, 1]"
    printed = shell.run("submit", "digits", "--set", axis, "--backend", "slurm")
    assert "  account physics comes from SBATCH_ACCOUNT in the environment" in printed
    assert "  SBATCH_ARRAY_INX in the environment: not used" in printed
    assert "queued 2 points as Slurm job array 9," in printed
    assert "SBATCH_" not in (tmp_path / "seen").read_text()
    (script,) = shell.runs.glob("*.sweep/slurm/*.sh")
    assert "#SBATCH --account=physics\n#SBATCH --array=0-1%2\n" in script.read_text()


@pytest.mark.parametrize("name", ["SLURM_CLUSTERS", "SBATCH_CLUSTERS"])
def test_another_cluster_is_refused_by_name(tmp_path: Path, name: str) -> None:
    shell = Shell(tmp_path / "runs", env=((name, "two"),))
    printed = shell.run("submit", "digits", "--backend", "slurm", code=2)
    assert (
        printed.startswith(f"batchyard: {name}=two in the environment")
        and f"`unset {name}`" in printed
    )
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("printed", "job"),
    [
        ("12\n", "12"),
        ("12;two\n", "12"),
        ("charged to account 12345\n12\n", None),
        ("12\ncharged to account 12345\n", None),
        ("Submitted batch job 5 on cluster two\n", None),
        ("Submitted batch job 5\n", None),
        ("12 13\n", None),
        ("", None),
    ],
)
def test_a_jobs_id_is_a_number_and_nothing_else(printed: str, job: str | None) -> None:
    assert slurm_commands.job_id(printed) == job


@pytest.mark.parametrize("printed", ["charged to account 12345; 12", "", "Submitted batch job 5"])
def test_a_job_whose_id_is_not_clear_is_looked_for(tools: Path, printed: str) -> None:
    fake(tools, "sbatch", f"echo '{printed}'")
    fake(tools, "squeue", f"echo '9|(null)'; echo '12_[0-3]|mine | {TOKEN}'")
    assert slurm_commands.submit(TOKEN, "script.sh") == "12"


def test_a_job_that_is_not_found_is_no_success(tools: Path) -> None:
    fake(tools, "sbatch", "echo 'Submitted batch job 5 on cluster two'")
    fake(tools, "squeue", "exit 0")
    with pytest.raises(
        slurm_commands.SlurmError, match=f"found 'Submitted batch job 5 on .*{TOKEN}"
    ) as found:
        slurm_commands.submit(TOKEN, "script.sh")
    assert not isinstance(
        found.value, slurm_commands.Refused
    )  # so that the next submit looks again


def test_a_command_that_hangs_is_ended_with_what_it_started(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHYARD_SLURM_ANSWER_S", "0.5")
    fake(tools, "squeue", f"sleep 600 & echo $! > {tmp_path}/pid; wait")
    with pytest.raises(slurm_commands.NoAnswer, match="`squeue -h` gave no answer within"):
        slurm_commands.ask("squeue", "-h")
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("limit", ["soon", "0", "-1", "nan"])
def test_a_limit_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    monkeypatch.setenv("BATCHYARD_SLURM_ANSWER_S", limit)
    with pytest.raises(slurm_commands.SlurmError, match=f"ANSWER_S={limit}: expected seconds"):
        slurm_commands.answer_s()


def test_an_sbatch_that_hangs_and_was_heard_is_found(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHYARD_SLURM_ANSWER_S", "0.5")
    fake(tools, "sbatch", "exec sleep 600")
    fake(tools, "squeue", f"echo '12|{TOKEN}'")
    assert slurm_commands.submit(TOKEN, "script.sh") == "12"


def test_a_job_that_was_lost_is_not_submitted_again(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm took it, perhaps on another cluster: a second one would do its work once more."""
    monkeypatch.chdir(tmp_path)
    run = RunDir(tmp_path / "runs" / "a-01234567")
    run.slurm.mkdir(parents=True)
    plan = planning.Plan(
        "slurm", run.run_id, 1, 1, "cpu", [], {}, "python", slurm={"additional_parameters": {}}
    )
    fake(
        tools,
        "sbatch",
        f"echo x >> {tmp_path}/submitted; echo 'Submitted batch job 5 on cluster two'",
    )
    fake(tools, "squeue", "exit 0")
    way_out = "remove runs/a-01234567/slurm/intent.json: until then nothing is submitted again"
    with pytest.raises(slurm_commands.SlurmError, match=way_out):
        slurm.submit(run, plan)
    for _ in range(2):
        with pytest.raises(slurm_commands.SlurmError, match=way_out):
            slurm.adopt(run)
    assert (tmp_path / "submitted").read_text() == "x\n"
    token = json.loads((run.slurm / "intent.json").read_text())["token"]
    fake(tools, "squeue", f"echo '5|{token}'")
    slurm.adopt(run)
    assert slurm_job(run) == "5" and not (run.slurm / "intent.json").exists()


@pytest.mark.parametrize("option", ["array: 0-2", "clusters: two", "wait: true", "test_only: true"])
def test_an_option_that_makes_no_job_or_several_is_refused(tmp_path: Path, option: str) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(f"backend: slurm\nslurm: {{additional_parameters: {{{option}}}}}\n")
    printed = Shell(tmp_path / "runs").run("show", "digits", "--site", str(site), code=2)
    assert f"{option.split(':')[0]} would" in printed and "site.yaml:2" in printed


def test_a_follower_is_found_and_inherits_nothing_of_its_job(
    tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing may be requeued; its sbatch prints more than the id, as a site's may."""
    for name, value in DECIDING.items():
        monkeypatch.setenv(name, value)
    run = RunDir(tmp_path / "runs" / "a-01234567")
    attempt = run.attempt("slurm-7.0")
    attempt.path.mkdir(parents=True)
    attempt.script.write_text("#!/bin/bash\n#SBATCH --comment='group a'\nsrun x\n")
    said = f"{tmp_path}/sbatch"
    fake(
        tools,
        "sbatch",
        f"env > {said}.env; printf '%s\\n' \"$@\" > {said}; echo charged to a; echo 9",
    )
    fake(tools, "squeue", f"echo \"9|$(sed -n 's/^--comment=//p' {said})\"")
    of_job = {"SLURM_SUBMIT_DIR": "/project"}
    assert requeue.queue_behind(run, attempt, "7", "7", of_job) is None
    assert slurm_job(run) == "9" and run.attempt("slurm-9.0").script.exists()
    options = Path(said).read_text()
    assert "--comment=group a batchyard:" in options and "--dependency=afterany:7" in options
    assert "--chdir=/project" in options  # launch.node itself is in the run's directory
    seen = [line.partition("=")[0] for line in Path(f"{said}.env").read_text().splitlines()]
    assert not set(DECIDING) & set(seen)


def test_a_command_is_ended_with_its_asker(tools: Path, tmp_path: Path) -> None:
    """Ctrl-C does not reach a command that has a session of its own."""
    fake(tools, "squeue", f"echo $$ > {tmp_path}/pid; exec sleep 600")
    code = "from launch import slurm_commands; slurm_commands.ask('squeue')"
    asker = subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT, stderr=subprocess.DEVNULL)
    wait_for("the command", lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    asker.send_signal(signal.SIGINT)
    asker.wait(timeout=30)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()


SILENT = {
    "hangs": ("sleep 600", "gave no answer within 1 s"),
    "fails": (
        "echo 'Unable to contact slurm controller' >&2; exit 1",
        "Unable to contact slurm controller",
    ),
}


@pytest.mark.parametrize("fault", SILENT)
def test_what_the_directories_tell_is_shown_while_slurm_is_silent(
    queued: RunDir, tools: Path, fault: str
) -> None:
    script, reason = SILENT[fault]
    fake(tools, "squeue", script)
    local = RunDir(queued.path.parent / "b-01234567")
    write_json(local.config, {"job": "b"})
    Outcome("completed", "completed", "local-1", "t", 23, test_accuracy=0.5).write(
        local.attempt("local-1").outcome
    )
    shell = Shell(queued.path.parent, env=(("BATCHYARD_SLURM_ANSWER_S", "1"),))

    lines = shell.run("status").splitlines()
    rows = {words[0]: words for line in lines if (words := line.split())}
    assert rows["b-01234567"][1] == "completed" and "50.00" in rows["b-01234567"]
    assert rows["a-01234567"][1] == "unknown" and "Slurm job 7" in "\n".join(lines)
    assert (
        lines[-1].startswith("what Slurm has in its queue is not known: ") and reason in lines[-1]
    )

    told = shell.run("why", "a").splitlines()
    assert told[0].startswith(
        "a-01234567 was queued as Slurm job 7, and no attempt of it has begun"
    )
    assert reason in told[-1] and len(told) <= 5
    assert shell.run("why", "b").startswith("b-01234567 completed")
    assert "has not started: Slurm job 7" in shell.run("logs", "a")
    assert reason in shell.run("cancel", "a", code=1)
    assert not queued.cancel.exists()


def test_a_machine_without_squeue_knows_what_the_directories_tell(
    queued: RunDir, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop that sees a cluster's runs: nothing is `gone`, and a run may go on there."""
    monkeypatch.setenv("PATH", str(tools))
    found, silence = standings.look([queued])
    assert isinstance(silence, slurm_commands.NotHere)
    assert found[queued.run_id].state == "unknown"
    assert standings.standings([queued]) == found


GONE = [
    (
        "JobId=7 JobName=a JobState=FAILED Reason=BadConstraints Dependency=(null)",
        "",
        "FAILED (BadConstraints): no node",
    ),
    ("", "NODE_FAIL|None", "NODE_FAIL, and no"),
    (
        "",
        "CANCELLED by 1000|DependencyNeverSatisfied",
        "CANCELLED (DependencyNeverSatisfied): the job before",
    ),
    ("", "", "gone, and no attempt"),
]


@pytest.mark.parametrize(("shown", "accounted", "words"), GONE)
def test_a_job_that_ended_before_its_first_word_is_told_in_slurms_words(
    queued: RunDir, tools: Path, shown: str, accounted: str, words: str
) -> None:
    fake(tools, "squeue", "exit 0")
    fake(tools, "scontrol", f"echo '{shown}'")
    fake(tools, "sacct", f"echo '{accounted}'")
    shell = Shell(queued.path.parent)
    first, second, _ = shell.run("why", "a").splitlines()
    assert (
        first.startswith(f"a-01234567 is dead: Slurm job 7 is {words}")
        and "no attempt of it has begun" in first
    )
    assert second == f"it left no log in {queued.slurm}"
    queued.slurm.mkdir(exist_ok=True)
    (queued.slurm / "7_0_log.out").write_text("module load cuda\nmodule: no such module\n\n")
    assert "its log ends with 'module: no such module': " in shell.run("why", "a")


def test_a_run_that_was_to_continue_is_told_why_it_does_not(queued: RunDir, tools: Path) -> None:
    stopped = Outcome("stopped", "preempted", "slurm-7.0", "t", 5, cause="asked to stop")
    stopped.write(queued.attempt("slurm-7.0").outcome)
    fake(tools, "squeue", "exit 0")
    fake(tools, "scontrol", "echo 'JobId=7 JobState=FAILED Reason=BadConstraints'")
    lines = Shell(queued.path.parent).run("why", "a").splitlines()
    assert lines[1].startswith(
        "it was to continue by itself, but Slurm job 7 is FAILED (BadConstraints): no"
    )


def test_a_job_that_ended_with_its_attempt_is_no_news(queued: RunDir, tools: Path) -> None:
    stopped = Outcome("stopped", "preempted", "slurm-7.0", "t", 5, cause="nothing follows")
    stopped.write(queued.attempt("slurm-7.0").outcome)
    fake(tools, "squeue", "exit 0")
    fake(tools, "scontrol", "echo 'JobId=7 JobState=FAILED Reason=NonZeroExitCode'")
    assert "it was to continue" not in Shell(queued.path.parent).run("why", "a")


def test_a_job_that_left_the_queue_between_two_questions_is_no_error(
    queued: RunDir, tools: Path
) -> None:
    fake(
        tools,
        "squeue",
        'case "$*" in *"-j 7"*) echo "slurm_load_jobs error: Invalid job id specified" >&2; exit'
        " 1;; *) echo '7|PENDING|Priority';; esac",
    )
    assert "Slurm job 7" in Shell(queued.path.parent).run("why", "a").splitlines()[0]
