"""What is too much, too long or not allowed ends with a message: job files, names, paths, and what
the system refuses.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from launch.errors import of_the_system
from launch.spec import load
from launch.spec.job import Job
from launch.spec.yaml_tree import MAX_SHOWN, SpecError, parse, setting
from tests.cli import BATCHYARD, PROJECT, Shell
from tests.test_unreadable import make

TRAIN = (
    "train: {epochs: 1, global_batch_size: 8, data: {name: digits}, model: {name: mlp, hidden:"
    " [4]}}\n"
)


def mistakes(text: str) -> str:
    with pytest.raises(SpecError) as caught:
        parse(text, "a.yaml")
    return str(caught.value)


def test_aliases_of_aliases_are_counted_as_what_they_stand_for() -> None:
    """Six levels of ten are a million values, of 400 characters."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 6)]
    assert "makes more than 100,000 values, each alias counted as what it stands for" in mistakes(
        "\n".join(lines)
    )
    assert parse("\n".join(lines[:3]), "a.yaml").value["a2"][9][9][9] == "x"


@pytest.mark.parametrize(
    "text",
    [
        "a: " + 1000 * "[",
        "a: " + 60 * "[" + 60 * "]",
        "a: " + 5000 * "{a: ",
        "a: " + 900 * "[" + 900 * "]",
    ],
)
def test_deep_nesting(text: str) -> None:
    said = mistakes(text)
    assert "is nested deeper than 50 levels" in said or "is not YAML" in said
    assert len(said) < 500
    with pytest.raises(SpecError):
        setting(f"train.x={text[3:]}")


@pytest.mark.parametrize("number", [5000 * "1", "0x" + 5000 * "f", "1." + 5000 * "0", 500 * "9"])
def test_numbers_that_no_computer_has(tmp_path: Path, number: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(TRAIN.replace("epochs: 1", f"epochs: {number}"))
    with pytest.raises(SpecError) as caught:
        load.load(Job("a", path), without_gpu=True)
    assert "train.epochs: found '" in str(
        caught.value
    ) and "characters more; expected a whole number" in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_thousands_of_mistakes_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(TRAIN + "".join(f"odd_{n}: 1\n" for n in range(20_000)))
    with pytest.raises(SpecError) as caught:
        load.load(Job("a", path), without_gpu=True)
    lines = str(caught.value).splitlines()
    assert (
        len(lines) == MAX_SHOWN + 1
        and lines[-1] == f"and {len(caught.value.problems) - MAX_SHOWN:,} more mistakes"
    )
    assert len(caught.value.problems) >= 20_000


def test_long_names_and_paths(tmp_path: Path) -> None:
    shell, long = Shell(tmp_path), 300 * "x"
    assert "File name too long" in shell.run("logs", long, code=1)
    for argv in (
        ("why", long),
        ("report", long),
        ("cancel", long),
        ("check", f"{long}.yaml"),
        ("submit", long),
    ):
        printed = shell.run(*argv, code=2)
        assert (
            "File name too long; a name has at most 255 bytes" in printed
            and "Traceback" not in printed
        )
    deep = Shell(tmp_path / "/".join(30 * [200 * "y"]))
    assert "File name too long" in deep.run("status", code=2)


def test_what_the_system_refuses(tmp_path: Path) -> None:
    run = make(tmp_path / "runs" / "digits-00000001")
    run.report.mkdir()
    (run.report / "x").touch()
    printed = Shell(tmp_path / "runs").run("report", run.run_id, code=1)
    assert (
        printed.startswith("batchyard: ")
        and str(run.report) in printed
        and "a folder is where a file should be" in printed
    )
    (tmp_path / "file").touch()
    printed = Shell(tmp_path / "file").run("status", code=1)
    assert "Not a directory; a file is where a folder should be" in printed
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/runs/x")
    assert of_the_system(full).startswith(
        "/runs/x: No space left on device; free some space on that disk"
    )


def test_a_reader_that_has_enough(tmp_path: Path) -> None:
    for number in range(400):
        make(tmp_path / f"digits-{number:08x}")
    command = " ".join(f"'{word}'" for word in (*BATCHYARD, "status", "--runs-dir", str(tmp_path)))
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    ended = subprocess.run(
        ["sh", "-c", f"{command} | head -1"],
        cwd=PROJECT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ended.stderr == "" and ended.stdout.startswith("run ")


@pytest.mark.parametrize("verb", ["cancel", "why", "logs", "report"])
def test_an_empty_name_names_no_run(tmp_path: Path, verb: str) -> None:
    run = make(tmp_path / "digits-00000001")
    assert "the name of a run is empty" in Shell(tmp_path).run(verb, "", code=2)
    assert not run.cancel.exists()


def test_control_characters_in_paths(tmp_path: Path) -> None:
    odd = tmp_path / "a\n#SBATCH --array=0-9"
    odd.mkdir()
    (odd / "a.yaml").write_text(TRAIN)
    printed = Shell(odd).run("show", "digits", code=2)
    assert "a\\n#SBATCH --array=0-9 has a control character (\\n) in it" in printed
    assert "has a control character" in Shell(odd).run("status", code=2)
    assert "has a control character" in Shell(tmp_path).run(
        "show", "digits", "--data-dir", str(odd), code=2
    )
    assert "the job's file: " in Shell(tmp_path).run("check", str(odd / "a.yaml"), code=2)
    site = tmp_path / "site.yaml"
    site.write_text('paths: {cache: "/tmp/c\\tc"}\n')
    assert "paths.cache: /tmp/c\\tc has a control character" in Shell(tmp_path).run(
        "show", "digits", "--site", str(site), code=2
    )
