"""What is frozen of a project, and what is not: secrets, crowds of files, submodules, folders
without git.
"""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from launch.submit import project_files, secret_files, snapshot
from launch.submit.snapshot import SnapshotError
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir

SECRETS = (
    ".env",
    ".env.local",
    ".netrc",
    "id_rsa",
    "server.pem",
    ".aws/credentials",
    "conf/secrets.yaml",
    "deploy.txt",
    "gcp-1a2b.json",
)
# in pieces, so that no file of this project looks like one
HEADER = f"-----BEGIN {'OPENSSH'} PRIVATE KEY-----"


def git(folder: Path, *arguments: str, **env: str) -> str:
    who = (
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "protocol.file.allow=always",
    )
    argv = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(
        argv, env={**os.environ, **env}, capture_output=True, text=True, check=True
    ).stdout


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A project that git does not know."""
    project = tmp_path / "project"
    for name in (
        "trainer/__init__.py",
        "launch/__init__.py",
        "launch/site.example.yaml",
        "jobs/a.yaml",
    ):
        write(project / name, name)
    return project


@pytest.fixture
def project(plain: Path) -> Path:
    git(plain, "init", "-q")
    git(plain, "add", "-A")
    git(plain, "commit", "-qm", "first")
    return plain


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def write_secrets(project: Path) -> None:
    for name in SECRETS:
        write(project / name, "x", 0o600)
    write(project / "deploy.txt", f"Bag attributes\n{HEADER}\nb3Blb\n")
    write(project / "gcp-1a2b.json", f'{{"private_key": "{HEADER}\\n{"A" * 64}\\n"}}')


def frozen(project: Path, tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs/a-00000000")
    run.path.mkdir(parents=True, exist_ok=True)
    snapshot.freeze(snapshot.look(project), run, None)
    return run


def names(folder: Path) -> set[str]:
    """Of all files but those that Batchyard puts beside the code."""
    ours = (snapshot.PACKAGES, snapshot.BYTECODE)
    found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    return {str(name) for name in found if not set(ours) & set(name.parts)}


def test_untracked_secrets_are_left_out_and_named(project: Path, tmp_path: Path) -> None:
    write_secrets(project)
    write(project / "notes.txt", "x", 0o600)
    write(project / "tool.sh", "x", 0o755)
    run, code = frozen(project, tmp_path), snapshot.look(project)
    kept = {
        "trainer/__init__.py",
        "launch/__init__.py",
        "launch/site.example.yaml",
        "jobs/a.yaml",
        "notes.txt",
        "tool.sh",
    }
    assert names(run.code) == kept
    assert read_json(run.code_record)["left_out"] == dict.fromkeys(SECRETS, "looks like a secret")
    (note,) = code.notes
    assert note.startswith(
        "left out of the frozen code: .aws/credentials, .env, .env.local, .netrc, "
    ) and note.endswith(" and 1 more (looks like a secret)")
    modes = {
        name: stat.S_IMODE((run.code / name).stat().st_mode)
        for name in ("notes.txt", "tool.sh", "jobs/a.yaml")
    }
    assert modes == {"notes.txt": 0o400, "tool.sh": 0o555, "jobs/a.yaml": 0o444}


def test_tracked_secrets_are_copied_and_named(project: Path, tmp_path: Path) -> None:
    write_secrets(project)
    git(project, "add", "-A", "-f")
    assert set(SECRETS) <= names(frozen(project, tmp_path).code)
    (note,) = snapshot.look(project).notes
    assert (
        "tracked, and so copied into the frozen code, although it looks like a secret:"
        " .aws/credentials, .env," in note
    )


def test_a_folder_takes_its_mode_from_the_umask(project: Path, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run = frozen(project, tmp_path)
    finally:
        os.umask(before)
    assert (
        stat.S_IMODE(run.code.stat().st_mode)
        == stat.S_IMODE((run.code / "jobs").stat().st_mode)
        == 0o700
    )


@pytest.mark.parametrize(
    "name",
    [
        "id_rsa.pub",
        ".env.example",
        "secrets.py",
        "tests/credentials.py",
        "environment.yaml",
        "keys.md",
        "token.py",
        "a.keys",
    ],
)
def test_names_that_are_no_secrets(name: str) -> None:
    assert not secret_files.has_secret_name(name)


@pytest.mark.parametrize(
    ("text", "is_key"),
    [
        (f"{HEADER}\n", True),
        (HEADER.replace("OPENSSH ", "") + "\n", True),
        (HEADER.replace("OPENSSH", "RSA") + "\r\n", True),
        (f"key = '{HEADER}\\n{'B' * 40}'", True),
        (f"if '{HEADER}' in text:", False),
        ("-----BEGIN CERTIFICATE-----\nMIIB\n", False),
        ("-----BEGIN PUBLIC KEY-----\nMIIB\n", False),
    ],
)
def test_keys_are_known_by_their_headers(text: str, is_key: bool) -> None:
    assert secret_files.holds_key(text.encode()) == is_key


def test_this_project_has_nothing_that_looks_like_a_secret() -> None:
    code = snapshot.look(Path(__file__).parents[1])
    assert not [note for note in code.notes if "looks like a secret" in note]


def test_a_crowd_of_untracked_files_is_refused_with_its_folder(project: Path) -> None:
    crowd = project / "out/images/a"
    crowd.mkdir(parents=True)
    for number in range(project_files.MAX_UNTRACKED + 1):
        (crowd / f"{number}.txt").touch()
    with pytest.raises(SnapshotError) as refused:
        snapshot.look(project)
    told = str(refused.value)
    assert "has 2,001 files that git does not track (at most 2,000 are taken for code)" in told
    assert told.endswith(", 2,001 of them in out/images/a/: add what is no code to .gitignore")
    (project / ".gitignore").write_text("/out/\n")
    assert ".gitignore" in snapshot.look(project).contents


def test_submodules_are_copied_and_other_repositories_are_named(
    project: Path, tmp_path: Path
) -> None:
    library = tmp_path / "library"
    write(library / "lib.py", "x")
    git(tmp_path, "init", "-q", str(library))
    git(library, "add", "-A")
    git(library, "commit", "-qm", "first")
    git(project, "submodule", "--quiet", "add", str(library), "third/library")
    git(project, "submodule", "--quiet", "add", str(library), "third/empty")
    git(project, "submodule", "--quiet", "deinit", "-f", "third/empty")
    git(project, "clone", "-q", str(library), "clone")
    write(project / "third/library/.env", "x")
    (project / "shared").symlink_to(library)
    run = frozen(project, tmp_path)
    assert {"third/library/lib.py", ".gitmodules"} <= names(run.code)
    assert read_json(run.code_record)["left_out"] == {
        "third/library/.env": "looks like a secret",
        "third/empty": "an empty submodule; git submodule update --init fills it",
        "clone/": "a git repository of its own, no submodule",
        "shared": "a link that leads to no file",
    }


def test_without_git_the_two_packages_are_taken_and_it_is_said(plain: Path, tmp_path: Path) -> None:
    write(plain / "trainer/__pycache__/a.pyc", "x")
    write(plain / "trainer/.env", "x")
    code = snapshot.look(plain)
    assert set(code.contents) == {
        "trainer/__init__.py",
        "launch/__init__.py",
        "launch/site.example.yaml",
    }
    assert (
        code.notes[0]
        == f"{plain} is no git checkout: trainer/ and launch/ alone are taken, and no commit is"
        " recorded"
    )
    assert code.left_out == {"trainer/.env": "looks like a secret"}


def test_what_git_says_of_a_checkout_that_it_does_not_read(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    (note,) = snapshot.look(project).notes
    assert (
        f"git does not read {project} (fatal: detected dubious ownership in repository at"
        f" '{project}'" in note
    )
    assert (
        f"git config --global --add safe.directory {project}): trainer/ and launch/ alone are taken"
        in note
    )


def test_a_file_that_changes_while_it_is_frozen(project: Path, tmp_path: Path) -> None:
    code = snapshot.look(project)
    write(project / "jobs/a.yaml", "other")
    run = RunDir(tmp_path / "a-00000000")
    run.path.mkdir()
    with pytest.raises(
        SnapshotError, match=r"a\.yaml was changed while it was being frozen: submit again"
    ):
        snapshot.freeze(code, run, None)
    assert not run.code.exists()


def test_only_the_two_packages_are_on_the_path(project: Path, tmp_path: Path) -> None:
    write(project / ".packages/random.py", "x")
    write(project / "trainer/__pycache__/a.pyc", "x")
    write(project / "random.py", "x")
    git(project, "add", "-A", "-f")
    run = frozen(project, tmp_path)
    assert sorted(path.name for path in run.packages.iterdir()) == ["launch", "trainer"]
    assert "random.py" in names(run.code)
    left_out = {".packages/random.py": ".packages is what the frozen code has on the path"}
    assert read_json(run.code_record)["left_out"] == left_out
    assert not (run.code / "trainer/__pycache__").is_dir()


def test_names_that_are_no_text(project: Path, tmp_path: Path) -> None:
    odd = os.fsdecode(b"jobs/caf\xe9 \n.txt")
    write(project / odd, "x")
    run = frozen(project, tmp_path)
    assert (run.code / odd).read_text() == "x" and odd in read_json(run.code_record)["contents"]
