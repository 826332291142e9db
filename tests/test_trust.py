"""Whose code is run: owners, modes, whom the site trusts, and code that is no longer what was
frozen.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch import errors
from launch.backends import standings
from launch.runs import state
from launch.spec import folders, load
from launch.spec.site import Site
from launch.submit import request as submit
from launch.submit import snapshot, trust, write
from launch.submit.request import Request
from launch.submit.trust import DistrustError
from tests.cli import PROJECT, Shell
from trainer.config.files.json_files import read_json, write_json
from trainer.config.files.layout import RunDir
from trainer.config.files.outcome import Outcome

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")
# what trainer.export prints, and a sign that it ran
TOOL = """
import json, pathlib, sys
pathlib.Path(sys.argv[1]).with_name("ran").touch()
print(json.dumps({"file": "w", "tensors": 1, "bytes": 1, "checkpoint": "c", "weights_sha256": "0"}))
"""
OTHER = pwd.getpwnam("nobody")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run whose frozen trainer.export leaves a file `ran`."""
    project = tmp_path / "project"
    for name, text in {
        "trainer/__init__.py": "",
        "trainer/export.py": TOOL,
        "launch/__init__.py": "",
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    run = RunDir(tmp_path / "runs/a-00000000")
    write_json(run.config, {"job": "a"})
    write_json(run.plan, {"python": sys.executable})
    snapshot.freeze(snapshot.look(project), run, None)
    return run


def give(run: RunDir, user: int = OTHER.pw_uid, group: int = OTHER.pw_gid) -> None:
    for path in (run.path, *run.path.rglob("*")):
        os.chown(path, user, group, follow_symlinks=False)


def export(run: RunDir, *options: str, code: int = 0) -> str:
    printed = Shell(run.path.parent).run("export", run.run_id, *options, code=code)
    assert (run.path / "ran").exists() == (code == 0)
    (run.path / "ran").unlink(missing_ok=True)
    return printed


@as_root
def test_another_users_code_runs_where_it_is_trusted(run: RunDir, tmp_path: Path) -> None:
    assert "1 tensors" in export(run)
    give(run)
    refused = export(run, code=2)
    assert f"the code of {run.run_id} is not run, for it would run as root:\n" in refused
    assert f"  {run.path} belongs to {OTHER.pw_name} (and " in refused
    assert "`trusted` of the site file; --trust allows it once" in refused
    export(run, "--trust")
    export(run, code=2)
    file = tmp_path / "site.yaml"
    group = grp.getgrgid(OTHER.pw_gid).gr_name
    for name in (OTHER.pw_name, group, str(tmp_path), str(OTHER.pw_uid)):
        file.write_text(f"trusted: ['{name}']\n")
        export(run, "--site", str(file))
    file.write_text("trusted: [nobody-of-that-name, /elsewhere]\n")
    assert "names nobody-of-that-name: neither a user nor a group here" in export(
        run, "--site", str(file), code=2
    )
    for verb in ("status", "why", "logs"):
        Shell(run.path.parent).run(verb, run.run_id)


@as_root
@pytest.mark.parametrize(
    "name", ["plan.json", "code.json", "code/trainer/export.py", "code/trainer"]
)
def test_one_file_of_another_user_is_enough(run: RunDir, name: str) -> None:
    os.chown(run.path / name, OTHER.pw_uid, OTHER.pw_gid)
    with pytest.raises(DistrustError, match=f"{name} belongs to nobody"):
        trust.check(run, ())
    trust.check(run, ["nobody"])


@pytest.mark.parametrize(
    ("name", "mode", "why"),
    [
        ("", 0o777, "can be written by everybody"),
        ("plan.json", 0o666, "can be written by everybody"),
        ("code", 0o1777, "can be written by everybody"),
        ("code/trainer/export.py", 0o646, "can be written by everybody"),
    ],
)
def test_what_others_can_write(run: RunDir, name: str, mode: int, why: str) -> None:
    (run.path / name).chmod(mode)
    with pytest.raises(DistrustError, match=why):
        trust.check(run, ())
    trust.check(run, [str(run.path.parent)])
    trust.check(run, (), once=True)


@as_root
def test_a_teams_folder_is_one_line(run: RunDir) -> None:
    """umask 002 in a folder of a group."""
    team = grp.getgrnam("users")
    for path in (run.path, *run.path.rglob("*")):
        if not path.is_symlink():
            os.chown(path, 0, team.gr_gid)
            path.chmod(path.stat().st_mode | 0o020)
    with pytest.raises(DistrustError, match="can be written by the group users"):
        trust.check(run, ())
    trust.check(run, ["users"])
    give(run, os.geteuid(), os.getegid())
    trust._reasons_of_code.cache_clear()  # a process looks once at code that many runs share
    trust.check(run, ())  # a group that is its owner's alone is its owner


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("changed", "changed: trainer/export.py"),
        ("missing", "missing: launch/__init__.py"),
        ("a module", "not listed in code.json: trainer/random.py"),
        ("on the path", "not listed in code.json: .packages/random.py"),
        ("bytecode", "not listed in code.json: trainer/__pycache__/export.cpython-311.pyc"),
        ("a link", "not listed in code.json: trainer/more"),
        ("another package", "not listed in code.json: .packages/trainer"),
    ],
)
def test_code_that_is_not_what_was_frozen_is_not_run(
    run: RunDir, tmp_path: Path, kind: str, told: str
) -> None:
    code = run.code
    if kind == "changed":
        (code / "trainer/export.py").chmod(0o644)
        (code / "trainer/export.py").write_text("raise SystemExit(3)")
    elif kind == "missing":
        (code / "launch/__init__.py").unlink()
    elif kind == "a module":
        (code / "trainer/random.py").write_text("")
    elif kind == "on the path":
        (run.packages / "random.py").write_text("")
    elif kind == "bytecode":
        (code / "trainer/__pycache__").unlink()
        (code / "trainer/__pycache__").mkdir()
        (code / "trainer/__pycache__/export.cpython-311.pyc").write_bytes(b"x")
    elif kind == "a link":
        (code / "trainer/more").symlink_to(tmp_path)
    else:
        (run.packages / "trainer").unlink()
        (run.packages / "trainer").symlink_to(tmp_path)
    with pytest.raises(DistrustError) as refused:
        trust.check(run, (), once=True)
    assert str(refused.value).splitlines()[1:2] == [f"  {told}"]
    assert "is not what was frozen" in export(run, "--trust", code=2)


def test_nothing_writes_bytecode_into_the_code(run: RunDir) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    argv = [sys.executable, "-P", "-c", "import trainer.export, launch", str(run.config)]
    subprocess.run(
        argv, env={**env, "PYTHONPATH": str(run.packages)}, stdout=subprocess.DEVNULL, check=True
    )
    assert (run.path / "ran").exists()
    trust.check(run, ())


def test_code_of_an_earlier_version_is_compared_as_a_whole(run: RunDir) -> None:
    """Its record lists no files; Python has left bytecode beside them."""
    shutil.rmtree(run.packages)
    for package in ("trainer", "launch"):
        (run.code / package / "__pycache__").unlink()
    (run.code / "trainer/__pycache__").mkdir()
    (run.code / "trainer/__pycache__/export.cpython-311.pyc").write_bytes(b"x")
    record = read_json(run.code_record)
    write_json(
        run.code_record,
        {name: value for name, value in record.items() if name not in ("contents", "left_out")},
    )
    trust.check(run, ())
    (run.code / "trainer/random.py").write_text("")
    snapshot._contents.cache_clear()
    with pytest.raises(
        DistrustError, match=r"the files together are not those that code\.json has the sha256 of"
    ):
        trust.check(run, ())
    write_json(run.code_record, {"commit": None})
    trust.check(run, ())


def stopped(tmp_path: Path, **changes: Any) -> tuple[submit.Ready, state.Standing]:
    """A run of digits that was stopped, as a submit by somebody else has left it; as it is resolved
    again.
    """
    where = folders.Folders(tmp_path / "data", tmp_path / "cache", tmp_path / "runs")
    request = Request(load.find("digits", PROJECT), PROJECT, Site(), where, "local", **changes)
    loaded, machine = submit.load(request)
    ready = submit.resolve(request, loaded.specs[0], machine)
    ready.run.path.mkdir(parents=True)
    write.write_run(ready, state.Standing("new"), snapshot.look(PROJECT), None, print)
    attempt = ready.run.attempt("local-1")
    for path in (attempt.outcome, ready.run.outcome):
        Outcome("stopped", "preempted", "local-1", "test", 0).write(path)
    return ready, standings.standings([ready.run])[ready.run.run_id]


def test_submit_continues_no_code_that_others_can_write(tmp_path: Path) -> None:
    ready, before = stopped(tmp_path)
    ready.run.code.chmod(0o777)
    printed = Shell(tmp_path / "runs").run("submit", ready.run.run_id, code=2)
    assert (
        f"the code of {ready.run.run_id} is not run" in printed
        and "/code can be written by everybody" in printed
    )
    assert "can be written by everybody" in Shell(tmp_path / "runs").run("submit", "digits", code=2)
    with pytest.raises(errors.SubmitError, match="can be written by everybody"):
        write.write_run(ready, before, snapshot.look(PROJECT), None, print)
    vouched = replace(ready, request=replace(ready.request, trust=True))
    write.write_run(vouched, before, snapshot.look(PROJECT), None, print)


@pytest.mark.parametrize("verb", ["export", "predict", "replay", "submit"])
def test_the_option_is_there(verb: str) -> None:
    assert "--trust" in Shell(Path("/nowhere")).run(verb, "--help")
