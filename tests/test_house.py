"""The house's own rules: which module may import or read what, how long a file may be.

And that these tests can fail.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
MOST_LINES = 620
SOURCES = sorted(
    p.relative_to(PROJECT).as_posix()
    for top in ("trainer", "launch")
    for p in (PROJECT / top).rglob("*.py")
)
OWNERS = {  # what may be used only there
    "wandb": ("trainer/output/tracking.py",),
    "submitit": ("launch/backends/slurm.py",),
    "safetensors": ("trainer/tools/export.py", "trainer/weights/state_dict.py"),
    "onnxruntime": ("trainer/tools/program.py",),
    "optuna": (
        "trainer/config/files/study.py",
        "trainer/config/files/journal.py",
        "trainer/search.py",
        "launch/sweeps/search.py",
        "launch/sweeps/study_restore.py",
    ),
    # launch/slurm_commands.py: what of it Slurm's commands may see
    "os.environ": (
        "trainer/ranks/group.py",
        "trainer/output/tracking.py",
        "launch/environment.py",
        "launch/node/attempt.py",
        "launch/slurm_commands.py",
    ),
}
STANDARD_LIBRARY_ONLY = (
    "launch/node/attempt.py",
    "launch/node/requeue.py",
    "launch/slurm_commands.py",
    "launch/runs/restarts.py",
    "launch/runs/verdict.py",
    "launch/runs/log_end.py",
    "launch/engine.py",
    "launch/runs/records.py",
    "trainer/config/files/lock.py",
    "trainer/config/files/file_clock.py",
    "trainer/config/files/layout.py",
    "trainer/config/files/outcome.py",
    "trainer/config/steps.py",
)


def complaints(name: str, text: str) -> list[str]:
    """What is against the house in one file."""
    found = []
    tree = ast.parse(text)
    if not ast.get_docstring(tree):
        found.append(f"{name}: no sentence of what it owns")
    if text.count("\n") > MOST_LINES:
        found.append(f"{name}: {text.count(chr(10))} lines")
    if re.search(r"(^|/)(utils?|common|helpers?|misc|legacy|.*_v\d+)\.py$", name):
        found.append(f"{name}: a name that says nothing")
    for node in ast.walk(tree):
        for module in imported(node):
            top = module.split(".")[0]
            if name not in OWNERS.get(top, (name,)):
                found.append(f"{name}: imports {top}")
            if name.startswith("trainer/") and top == "launch":
                found.append(f"{name}: the trainer imports launch")
            if name.startswith("launch/") and (
                top in ("torch", "torchvision", "numpy")
                or (
                    top == "trainer"
                    and module != "trainer"
                    and not module.startswith("trainer.config")
                )
            ):
                found.append(f"{name}: launch imports {module}")
            if (
                name in STANDARD_LIBRARY_ONLY
                and top not in sys.stdlib_module_names
                and top not in ("launch", "trainer")
            ):
                found.append(f"{name}: imports {top}, which a compute node may lack")
        if (
            name.startswith("launch/")
            and name not in ("launch/text.py", "launch/console/follow.py")
            and isinstance(node, ast.Attribute)
            and node.attr == "echo"
            and getattr(node.value, "id", "") == "click"
        ):
            found.append(f"{name}:{node.lineno}: prints past launch.text")
        if (
            isinstance(node, ast.Attribute)
            and node.attr in ("environ", "getenv")
            and getattr(node.value, "id", "") == "os"
            and name not in OWNERS["os.environ"]
            and name != "trainer/__main__.py"
        ):
            found.append(f"{name}:{node.lineno}: reads the environment")
    return found


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return (
        [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
    )


@pytest.mark.parametrize("name", SOURCES)
def test_the_rules_of_the_house(name: str) -> None:
    assert complaints(name, (PROJECT / name).read_text()) == []


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("trainer/x.py", '"""Doc."""\nimport wandb\n', "trainer/x.py: imports wandb"),
        (
            "launch/x.py",
            '"""Doc."""\nfrom submitit import AutoExecutor\n',
            "launch/x.py: imports submitit",
        ),
        (
            "launch/x.py",
            '"""Doc."""\ndef f():\n    import torch\n',
            "launch/x.py: launch imports torch",
        ),
        (
            "launch/x.py",
            '"""Doc."""\nfrom trainer.train import main\n',
            "launch/x.py: launch imports trainer.train",
        ),
        (
            "trainer/x.py",
            '"""Doc."""\nfrom launch import spec\n',
            "trainer/x.py: the trainer imports launch",
        ),
        (
            "launch/x.py",
            '"""Doc."""\nimport os\nos.environ["A"]\n',
            "launch/x.py:3: reads the environment",
        ),
        (
            "launch/node/attempt.py",
            '"""Doc."""\nimport click\n',
            "launch/node/attempt.py: imports click, which a compute node may lack",
        ),
        (
            "launch/x.py",
            '"""Doc."""\nimport click\nclick.echo("a")\n',
            "launch/x.py:3: prints past launch.text",
        ),
        ("launch/x.py", "import os\n", "launch/x.py: no sentence of what it owns"),
        ("launch/utils.py", '"""Doc."""\n', "launch/utils.py: a name that says nothing"),
        ("launch/x.py", '"""Doc."""\n' + "\n" * MOST_LINES, f"launch/x.py: {MOST_LINES + 1} lines"),
    ],
)
def test_these_tests_can_fail(name: str, text: str, complaint: str) -> None:
    assert complaint in complaints(name, text)


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("launch.cli", ("torch", "wandb", "submitit", "numpy", "optuna")),
        ("launch.submit", ("torch", "wandb", "submitit", "numpy")),
        ("launch.backends.slurm", ("torch", "wandb", "submitit", "numpy", "pydantic")),
        # a table of runs is there before pydantic would be
        ("launch.cli.runs", ("torch", "pydantic", "yaml", "rich.console")),
        ("launch.node", ("torch", "pydantic", "yaml", "click", "rich", "submitit")),
        ("trainer.config.run", ("torch", "numpy", "launch", "optuna")),
        ("trainer.tools.prepare", ("torch", "launch", "wandb")),
        ("trainer.train", ("launch", "wandb", "torchvision", "sklearn", "optuna")),
    ],
)
def test_what_a_module_loads(module: str, never: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {never!r} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.strip() == "[]"


def test_the_import_test_can_fail() -> None:
    code = "import sys, launch.spec; print('yaml' in sys.modules)"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True
        ).stdout.strip()
        == "True"
    )


def test_the_top_level_is_what_the_readme_says() -> None:
    listing = subprocess.run(
        ["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    allowed = {
        "jobs",
        "trainer",
        "launch",
        "docker",
        "tests",
        "Makefile",
        "README.md",
        "pyproject.toml",
        "findings",
    }
    allowed |= {".ci", ".gitignore", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    allowed |= {".editorconfig", ".pre-commit-config.yaml", ".git-blame-ignore-revs"}
    assert {line.split("/")[0] for line in listing} <= allowed


def test_every_folder_has_its_page() -> None:
    for folder in ("jobs", "trainer", "launch", "docker", "tests"):
        page = (PROJECT / folder / "README.md").read_text()
        assert 5 < page.count("\n") < 200, folder
