"""The large jobs where there is no GPU: what each fallback trains on the real data, stopped and
continued, ends at the same bits.

Few steps of few or small pictures, but each job's own model, optimizer and data set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.spec import load
from tests import ranks
from tests.cli import PROJECT
from tests.test_data import real_data
from tests.test_segmentation import camvid_in_colours
from trainer.config.files.json_files import read_jsonl
from trainer.config.run import RunConfig
from trainer.datasets.prepare import prepare

FASHION = ("train.data.train_samples=64", "train.data.test_samples=32")
FOLDER = ("train.data.size=32", "train.data.resize=36")
JOBS = {
    **dict.fromkeys(
        [
            "fashion_alexnet",
            "fashion_vgg11",
            "fashion_nin",
            "fashion_googlenet",
            "fashion_resnet18",
        ],
        FASHION,
    ),
    "fashion_densenet": FASHION,
    **dict.fromkeys(["hotdog_finetune", "hotdog_scratch", "facade_resnext"], FOLDER),
    "voc_fcn_camvid": ("train.data.crop=[32, 64]",),
}
STEPS, STOP_AFTER = 7, 5  # of 64 pictures an epoch has 4 steps: within the second one


def short(name: str, **execution: Any) -> RunConfig:
    """The run of a job's fallback, cut short."""
    settings = ("train.global_batch_size=16", f"train.max_steps={STEPS}", *JOBS[name])
    job = load.load(load.find(name, PROJECT), settings, without_gpu=True)
    return ranks.config(f"{name}-00000000", execution=execution, **job.train.model_dump())


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_a_stopped_fallback_continues_to_the_same_bits(
    tmp_path: Path, cache: Path, name: str
) -> None:
    config = short(name)
    prepared = prepare(config.train.data, real_data(), cache, allow_unverified=True)
    whole = ranks.make_run(tmp_path / "whole", config, prepared)
    assert ranks.train(whole, "local-1", 1) == 0, ranks.logs(whole)
    run = ranks.make_run(tmp_path / "stopped", short(name, stop_after_step=STOP_AFTER), prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    stopped = ranks.outcome(run, "local-1")
    assert (stopped.status, stopped.global_step) == ("stopped", STOP_AFTER)
    ranks.set_execution(run, stop_after_step=None)
    assert ranks.train(run, "local-2", 1) == 0, ranks.logs(run)
    expected, found = ranks.outcome(whole, "local-1"), ranks.outcome(run, "local-2")
    assert (found.status, found.global_step) == ("completed", STEPS)
    assert found.weights_sha256 == expected.weights_sha256 and found.extra == expected.extra
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
    assert [row["global_step"] for row in read_jsonl(run.metrics) if row["kind"] == "eval"][
        -1
    ] == STEPS


@pytest.mark.long
def test_masks_in_colours_train_the_same_bits_as_palette_masks(tmp_path: Path, cache: Path) -> None:
    config, raw = short("voc_fcn_camvid"), real_data()
    made = [
        prepare(config.train.data, folder, cache)
        for folder in (raw, camvid_in_colours(raw, tmp_path / "raw"))
    ]
    assert made[0]["path"] != made[1]["path"]  # other files
    palette, colours = (
        ranks.make_run(tmp_path / str(i), config, prepared) for i, prepared in enumerate(made)
    )
    for run in (palette, colours):
        assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    assert (
        ranks.outcome(palette, "local-1").weights_sha256
        == ranks.outcome(colours, "local-1").weights_sha256
    )
    assert palette.metrics.read_bytes() == colours.metrics.read_bytes()
    # the figure's pictures, truths and predictions
    assert palette.masks.read_bytes() == colours.masks.read_bytes()
