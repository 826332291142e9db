"""Job files: what they become, and what a person who made a mistake reads. tests/cases holds YAML
in and the exact lines out.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from pydantic import BaseModel, ValidationError

from launch.spec import load as spec
from launch.spec import yaml_tree
from launch.spec.job import Job, JobSpec
from launch.spec.yaml_tree import SpecError
from trainer.config.strict import Strict

PROJECT = Path(__file__).resolve().parents[1]
CASES = PROJECT / "tests" / "cases"
RIGHT = CASES / "five_right.yaml"


def load(path: Path, *settings: str, without_gpu: bool = False) -> JobSpec:
    return spec.load(Job(path.stem, path), settings, without_gpu=without_gpu)


@pytest.mark.parametrize(
    "case", sorted(p.stem for p in CASES.glob("*.txt") if p.stem != "misspelt_by_set")
)
def test_a_mistake_is_told_exactly(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CASES)
    with pytest.raises(SpecError) as caught:
        load(CASES / f"{case}.yaml")
    assert str(caught.value) + "\n" == (CASES / f"{case}.txt").read_text()


def test_every_wrong_case_has_its_lines() -> None:
    assert {p.stem for p in CASES.glob("*.yaml")} - {p.stem for p in CASES.glob("*.txt")} == {
        "five_right"
    }


def test_five_mistakes_are_five_lines_and_exit_code_2() -> None:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            "from launch.cli import main; main()",
            "check",
            "five_mistakes.yaml",
        ],
        cwd=CASES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (CASES / "five_mistakes.txt").read_text()
    assert len(result.stderr.splitlines()) == 5


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("5E4", 5e4),
        ("1.", 1.0),
        (".5", 0.5),
        ("0o17", 15),
        ("0x1F", 31),
        ("-7", -7),
        ("~", None),
        ("", None),
        ("True", True),
        ("on", "on"),
        ("no", "no"),
        ("y", "y"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2026-01-02", "2026-01-02"),
        ("0b11", "0b11"),
        (".inf", float("inf")),
        ("017", 17),
        ("e3", "e3"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    found = yaml_tree.parse(f"key: {text}\nquoted: '{text}'", "x").value
    assert (found["key"], type(found["key"])) == (value, type(value))
    assert found["quoted"] == text


def test_extends_fallback_and_set_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(RIGHT.read_text() + "resources: {gpus_per_node: 8}\n")
    (tmp_path / "job.yaml").write_text(
        "extends: base\ntrain: {epochs: 2, seed: 2}\nfallback: {train: {epochs: 3, seed: 3},"
        " resources: {gpus_per_node: 0}}\n"
    )
    with_gpu = load(tmp_path / "job.yaml", "train.seed=4")
    without = load(tmp_path / "job.yaml", "train.seed=4", without_gpu=True)
    assert (with_gpu.train.epochs, with_gpu.train.seed, with_gpu.resources.gpus_per_node) == (
        2,
        4,
        8,
    )
    assert (without.train.epochs, without.train.seed, without.resources.gpus_per_node) == (3, 4, 0)
    assert with_gpu.train.global_batch_size == 64


def test_another_model_replaces_the_settings_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        f"extends: {RIGHT}\ntrain: {{model: {{name: resnet, width: 4}}}}\n"
    )
    assert load(tmp_path / "job.yaml").train.model.model_dump(exclude_unset=True) == {
        "name": "resnet",
        "width": 4,
    }


def test_lists_replace_and_set_takes_yaml() -> None:
    found = load(
        RIGHT, "train.model.hidden=[3, 4]", "train.schedule={name: cosine, warmup_epochs: 0.5}"
    )
    assert found.train.model.model_dump()["hidden"] == [3, 4]
    assert found.train.schedule.name == "cosine"


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (
            "train.epochs",
            "--set train.epochs: expected KEY.KEY=VALUE, as in train.optimizer.lr=0.1",
        ),
        (
            "train.epoch=3",
            "--set train.epoch=3: train.epoch: unknown key; did you mean 'epochs'? known: ",
        ),
        (
            "train.epochs=x",
            "--set train.epochs=x: train.epochs: found 'x'; expected a whole number",
        ),
        (
            "train.epochs=[",
            "--set train.epochs=[: train.epochs: the value '[' is not YAML; quote it",
        ),
        ("a..b=1", "--set a..b=1: expected KEY.KEY=VALUE, as in train.optimizer.lr=0.1"),
    ],
)
def test_a_wrong_set_is_told_as_typed(option: str, line: str) -> None:
    with pytest.raises(SpecError) as caught:
        load(RIGHT, option)
    assert str(caught.value).startswith(line)


MISSPELT = [  # four ways or more for each of eleven common settings
    "train.optimizer.learning_rate=0.1",
    "train.lr=0.1",
    "train.optimizer.lr=1e-3x",
    "train.optimizer.lr=-0.1",
    "train.epoch=3",
    "train.num_epochs=3",
    "train.epochs=3.5",
    "epochs=3",
    "train.batch_size=64",
    "train.batchsize=64",
    "train.global_batch_size=0",
    "train.global_batch=64",
    "train.optimizer.name=SGD",
    "train.optimizer=adam",
    "train.optim.name=sgd",
    "train.optimizer.name=rmsprop",
    "train.model.name=resnet18",
    "train.model.name=ResNet",
    "train.model=mlp",
    "train.network.name=resnet",
    "train.data.name=cifar-10",
    "train.data.name=CIFAR10",
    "train.dataset.name=digits",
    "train.data.path=/x",
    "train.scheduler.name=cosine",
    "train.schedule.name=onecycle",
    "train.schedule.name=cosine_annealing",
    "train.schedule.warmup=2",
    "train.optimizer.wd=1e-4",
    "train.weight_decay=1e-4",
    "train.optimizer.weight_decay=5e4-",
    "train.optimizer.weightdecay=0.1",
    "resources.gpus=8",
    "resources.gpu=8",
    "gpus_per_node=8",
    "resources.gpus_per_node=all",
    "resources.time=2h",
    "resources.timeout_min=2h",
    "resources.walltime=60",
    "timeout_min=60",
    "train.precision=float16",
    "train.precision=16",
    "train.amp=true",
    "execution.precision=bf16",
]


def test_common_settings_misspelt_are_told_as_a_person_needs_it() -> None:
    lines = []
    for option in MISSPELT:
        with pytest.raises(SpecError) as caught:
            load(PROJECT / "jobs" / "digits.yaml", option)
        lines += str(caught.value).splitlines()
    assert lines == (CASES / "misspelt_by_set.txt").read_text().splitlines()


def test_the_digest_ignores_defaults_order_and_execution() -> None:
    first = load(RIGHT).train.digest()
    # seed: its default
    assert load(RIGHT, "train.seed=0", "execution.log_every_steps=3").train.digest() == first
    assert load(RIGHT, "train.seed=1").train.digest() != first
    # held: a run_id of today must be found again by every later version
    assert first[:8] == "c4c8b73c"


def models_below(model: type[BaseModel]) -> set[type[BaseModel]]:
    return {model, *(found for below in model.__subclasses__() for found in models_below(below))}


@pytest.mark.parametrize("value", [True, False, 1.0, 3.0])
def test_no_setting_takes_a_value_that_is_only_equal(value: object) -> None:
    taken = []
    for model in models_below(Strict):
        for name, field in model.model_fields.items():
            words = str(field.annotation)
            if type(value).__name__ in words or "Any" in words:
                continue
            with contextlib.suppress(ValidationError):
                model.__pydantic_validator__.validate_assignment(
                    model.model_construct(), name, value
                )
                taken.append(f"{model.__name__}.{name}: {words}")
    assert taken == []


def test_an_unknown_job_names_its_neighbours() -> None:
    with pytest.raises(SpecError, match=r"no such job; did you mean 'digits'\? known: .*digits"):
        spec.find("digts", Path(__file__).parents[1])


def test_every_job_of_the_project_is_right() -> None:
    jobs = spec.find_all(Path(__file__).parents[1])
    assert jobs
    for job in jobs:
        for without_gpu in (False, True):
            assert spec.load(job, without_gpu=without_gpu).description


def test_the_schema_is_generated_and_every_job_names_it() -> None:
    from launch.spec import schema

    assert json.loads(schema.PATH.read_text()) == schema.schema(), (
        "run: python -m launch.spec.schema"
    )
    for path in schema.PATH.parent.glob("*.yaml"):
        assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n"), path


def test_the_schema_takes_what_the_spec_takes_and_underlines_what_it_refuses() -> None:
    from launch.spec import schema

    checker = jsonschema.Draft202012Validator(schema.schema())
    for path in schema.PATH.parent.glob("*.yaml"):
        assert not list(checker.iter_errors(yaml_tree.read(path).value)), path
    for case in (
        "five_mistakes",
        "ranges",
        "unknown_model",
        "wrong_types",
        "mistake_in_the_fallback",
    ):
        assert list(checker.iter_errors(yaml_tree.read(CASES / f"{case}.yaml").value)), case


@pytest.mark.parametrize("value", ["x", "{a: b}", "[1, x]"])
def test_the_place_of_a_mistake_has_no_kind_of_a_union(value: str) -> None:
    job = PROJECT / "jobs" / "linear_regression.yaml"
    with pytest.raises(SpecError) as found:
        spec.load(Job(job.stem, job), (f"train.data.w={value}",), without_gpu=False)
    assert "train.data.w" in str(found.value) and "float" not in str(found.value)
