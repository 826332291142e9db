"""Continuing a stopped run is bit-exact: the same weights and the same metrics.jsonl as a run that
was never stopped.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests import ranks
from trainer.config.files.json_files import read_json, write_json
from trainer.datasets.prepare import prepare

STEPS_PER_EPOCH = 15  # 1,437 / 100


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("cache")
    return prepare(ranks.config().train.data, folder, folder)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_stopped_twice_within_an_epoch_and_once_at_its_end(
    tmp_path: Path, prepared: dict[str, Any], world_size: int
) -> None:
    whole = ranks.completed(tmp_path / "whole", prepared, world_size)
    run = ranks.make_run(tmp_path / "stopped", ranks.config(ranks=world_size), prepared)
    # twice within the first epoch, between two log rows, and once at its end
    for number, step in enumerate((3, 10, STEPS_PER_EPOCH), start=1):
        ranks.set_execution(run, stop_after_step=step)
        assert ranks.train(run, f"local-{number}", world_size) == 0, ranks.logs(run)
        stopped = ranks.outcome(run, f"local-{number}")
        assert (stopped.status, stopped.global_step) == ("stopped", step)
    ranks.set_execution(run, stop_after_step=None)
    assert ranks.train(run, "local-4", world_size) == 0, ranks.logs(run)

    expected, found = ranks.outcome(whole, "local-1"), ranks.outcome(run, "local-4")
    assert found.weights_sha256 == expected.weights_sha256
    assert found.test_accuracy == expected.test_accuracy
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_rows_after_the_checkpoint_are_cut_and_kept_aside(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(execution={"stop_after_step": 10}), prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    whole_rows = run.metrics.read_bytes()
    # a kill came after this row and before the next checkpoint
    lost = b'{"kind": "train", "global_step": 12}\n'
    run.metrics.write_bytes(whole_rows + lost)
    ranks.set_execution(run, stop_after_step=11)
    assert ranks.train(run, "local-2", 1) == 0, ranks.logs(run)
    assert run.metrics.read_bytes() == whole_rows
    assert run.attempt("local-2").discarded.read_bytes() == lost


def test_a_spoilt_checkpoint_is_moved_aside_and_the_one_before_it_taken(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    whole = ranks.completed(tmp_path / "whole", prepared)
    run = ranks.make_run(
        tmp_path,
        ranks.config(execution={"checkpoint_every_steps": 5, "stop_after_step": 10}),
        prepared,
    )
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    weights = run.checkpoints / "step-10.local-1" / "weights.pt"
    spoilt = bytearray(weights.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    weights.write_bytes(spoilt)
    ranks.set_execution(run, checkpoint_every_steps=None, stop_after_step=None)
    assert ranks.train(run, "local-2", 1) == 0, ranks.logs(run)
    log = run.attempt("local-2").rank_log(0).read_text()
    assert "step-10.local-1: weights.pt has another sha256" in log
    assert "continued from step-5.local-1" in log
    assert (run.checkpoints / "bad-step-10.local-1").is_dir()
    assert (
        ranks.outcome(run, "local-2").weights_sha256
        == ranks.outcome(whole, "local-1").weights_sha256
    )


def test_another_world_size_goes_on_and_says_that_it_is_no_longer_exact(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    run = ranks.make_run(
        tmp_path, ranks.config(ranks=2, execution={"stop_after_step": 7}), prepared
    )
    assert ranks.train(run, "local-1", 2) == 0, ranks.logs(run)
    ranks.set_execution(run, stop_after_step=None)
    assert ranks.train(run, "local-2", 1) == 0, ranks.logs(run)
    assert (
        "written by 2 rank(s), continued by 1: no longer bit-exact"
        in run.attempt("local-2").rank_log(0).read_text()
    )
    assert ranks.outcome(run, "local-2").status == "completed"


def test_other_data_refuses_to_continue(tmp_path: Path, prepared: dict[str, Any]) -> None:
    run = ranks.make_run(tmp_path, ranks.config(execution={"stop_after_step": 3}), prepared)
    assert ranks.train(run, "local-1", 1) == 0, ranks.logs(run)
    other = tmp_path / "other-cache"
    shutil.copytree(prepared["path"], other)
    manifest = {**read_json(other / "manifest.json"), "sha256": "0" * 64}
    write_json(other / "manifest.json", manifest)
    write_json(run.data_record, {**manifest, "path": str(other)})
    assert ranks.train(run, "local-2", 1) != 0
    evidence = read_json(run.attempt("local-2").rank_evidence(0))
    assert evidence["type"] == "ValueError" and "data_sha256" in evidence["message"]


def test_a_run_that_was_promised_a_gpu_never_trains_on_a_cpu(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    run = ranks.make_run(tmp_path, ranks.config(execution={"device": "cuda"}), prepared)
    hidden = {"BATCHYARD_ATTEMPT": "local-1", "CUDA_VISIBLE_DEVICES": ""}
    assert ranks.spawn(["-m", "trainer", str(run.config)], 1, **hidden) != 0
    assert read_json(run.attempt("local-1").rank_evidence(0))["type"] == "NoGPU"
    assert not run.metrics.exists()


def test_every_setting_together_continues_to_the_same_bits(
    tmp_path: Path, prepared: dict[str, Any]
) -> None:
    settings = {
        "precision": "bf16",
        "channels_last": True,
        "label_smoothing": 0.1,
        "clip_grad_norm": 0.5,
        "micro_batch_size": 40,
        "optimizer": {"name": "adamw", "lr": 0.01, "decay_bias_and_norm": False},
        "schedule": {"name": "one_cycle"},
        "data": {**ranks.DIGITS, "random_horizontal_flip": True, "validation": 0.1},
        "init": {"name": "kaiming_normal"},
        "ema_decay": 0.9,
        "best_metric": "loss",
        "early_stopping": {"patience_evaluations": 3},
    }
    whole = ranks.completed(tmp_path / "whole", prepared, 2, **settings)
    run = ranks.make_run(tmp_path / "stopped", ranks.config(ranks=2, **settings), prepared)
    # 13 steps an epoch: after an evaluation, within the second epoch
    for attempt, stop in (("local-1", 18), ("local-2", None)):
        ranks.set_execution(run, stop_after_step=stop)
        assert ranks.train(run, attempt, 2) == 0, ranks.logs(run)
    expected, found = ranks.outcome(whole, "local-1"), ranks.outcome(run, "local-2")
    assert found.weights_sha256 == expected.weights_sha256
    assert found.extra == expected.extra and found.extra["best"]["metric"] == "loss"
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()


def test_the_loss_scale_of_fp16_is_continued(tmp_path: Path, prepared: dict[str, Any]) -> None:
    model = {"name": "mlp", "hidden": [32]}
    whole = ranks.completed(tmp_path / "whole", prepared, precision="fp16", model=model)
    run = ranks.make_run(
        tmp_path / "stopped", ranks.config(precision="fp16", model=model), prepared
    )
    for attempt, stop in (("local-1", 4), ("local-2", None)):
        ranks.set_execution(run, stop_after_step=stop)
        assert ranks.train(run, attempt, 1) == 0, ranks.logs(run)
    assert (
        ranks.outcome(run, "local-2").weights_sha256
        == ranks.outcome(whole, "local-1").weights_sha256
    )
    assert run.metrics.read_bytes() == whole.metrics.read_bytes()
