"""The house's own rules: which module may import or read what, how long a file may be.

And that these tests can fail.
"""

from __future__ import annotations

import ast
import collections
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
MOST_LINES = 550  # of trainer/state.py; of the others 500
MOST_FILES = 14  # flat in one folder
# Who may import whom among the rooms of launch/: each room those above it that it names, and all of
# them the leaves, which are launch/*.py, and trainer.config.
FLOORS: dict[str, tuple[str, ...]] = {
    "spec": (),
    "runs": (),
    "report": ("runs",),
    "plan": ("spec",),
    "node": ("runs",),
    "results": ("spec", "runs", "report"),
    "submit": ("spec", "plan", "runs"),
    "backends": ("plan", "runs"),
    "drill": ("runs", "backends"),
    "sweeps": ("spec", "plan", "submit", "backends", "runs", "node"),
    "console": ("spec", "submit", "backends", "sweeps", "runs", "report"),
    "cli": (
        *("spec", "plan", "runs", "report", "results"),
        *("submit", "backends", "drill", "sweeps", "console"),
    ),
}
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
        "trainer/ranks/environment.py",
        "trainer/ranks/faults.py",
        "trainer/ranks/group.py",
        "trainer/ranks/machine.py",
        "trainer/output/tracking.py",
        "launch/environment.py",
        "launch/node/attempt.py",
        "launch/node/execute.py",
        "launch/node/place.py",
        "launch/spec/folders.py",
        "launch/slurm_commands.py",
    ),
}
STANDARD_LIBRARY_ONLY = (
    "launch/slurm_commands.py",
    "launch/engine.py",
    "launch/node/",
    "launch/runs/evidence.py",
    "launch/runs/log_end.py",
    "launch/runs/records.py",
    "launch/runs/restarts.py",
    "launch/runs/verdict.py",
    "trainer/config/files/file_clock.py",
    "trainer/config/files/json_files.py",
    "trainer/config/files/layout.py",
    "trainer/config/files/lock.py",
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
                name.startswith(STANDARD_LIBRARY_ONLY)
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


def rooms_entered(name: str, text: str) -> list[str]:
    """What a file of launch/ imports of a room that its own may not import."""
    own = name.split("/")[1] if name.count("/") > 1 else ""
    found = []
    for node in ast.walk(ast.parse(text)):
        for module in imported(node):
            parts = module.split(".")
            if parts[0] != "launch":
                continue
            names = [a.name for a in node.names] if isinstance(node, ast.ImportFrom) else []
            for room in parts[1:2] or names:
                if room in FLOORS and room != own and room not in FLOORS.get(own, ()):
                    found.append(f"{name}: {own or 'a leaf'} imports {room}")
    return found


def modules_imported(text: str) -> set[str]:
    """The modules of launch and trainer that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        for module in imported(node):
            found.add(module)
            if isinstance(node, ast.ImportFrom):
                found |= {f"{module}.{alias.name}" for alias in node.names}
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


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("launch/")])
def test_no_room_imports_one_above_it(name: str) -> None:
    if name == "launch/__main__.py":  # it is cli, for a Python whose scripts are not on PATH
        return
    assert rooms_entered(name, (PROJECT / name).read_text()) == []


def test_the_floors_are_those_of_the_folders_and_can_be_built() -> None:
    """Each room names only rooms before it: by that alone no circle is possible."""
    rooms = {name.split("/")[1] for name in SOURCES if name.count("/") > 1 and name < "trainer"}
    assert set(FLOORS) == rooms
    order = list(FLOORS)
    for room, below in FLOORS.items():
        assert all(order.index(other) < order.index(room) for other in below), room


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("launch/spec/x.py", "from launch.runs.find import a", "spec imports runs"),
        ("launch/spec/x.py", "def f():\n    from launch import submit", "spec imports submit"),
        ("launch/node/x.py", "import launch.spec.load", "node imports spec"),
        ("launch/text.py", "from launch.runs import find", "a leaf imports runs"),
    ],
)
def test_the_test_of_the_floors_can_fail(name: str, text: str, complaint: str) -> None:
    assert rooms_entered(name, text) == [f"{name}: {complaint}"]


def test_no_files_import_one_another_in_a_circle() -> None:
    modules = {name.removesuffix(".py").replace("/", "."): name for name in SOURCES}
    arrows = {
        module: modules_imported((PROJECT / name).read_text()) & (set(modules) - {module})
        for module, name in modules.items()
    }
    assert list(graphlib.TopologicalSorter(arrows).static_order())
    with pytest.raises(graphlib.CycleError):
        arrows["launch.errors"] = {"launch.cli.submit"}
        list(graphlib.TopologicalSorter(arrows).static_order())


def test_no_folder_has_more_files_than_a_reader_can_hold() -> None:
    counts = collections.Counter(str(Path(name).parent) for name in SOURCES)
    package = sum(name.endswith("__init__.py") for name in SOURCES)
    assert package == len(counts)  # each folder's own page is not counted
    assert {folder: n for folder, n in counts.items() if n - 1 > MOST_FILES} == {}


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
        ("launch.submit.request", ("torch", "wandb", "submitit", "numpy")),
        ("launch.backends.slurm", ("torch", "wandb", "submitit", "numpy", "pydantic")),
        # a table of runs is there before pydantic would be
        ("launch.cli.runs", ("torch", "pydantic", "yaml", "rich.console")),
        ("launch.node.attempt", ("torch", "pydantic", "yaml", "click", "rich", "submitit")),
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
    code = "import sys, launch.spec.load; print('yaml' in sys.modules)"
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
