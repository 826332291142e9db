"""The copy of the prepared data on a node's own disk: once, whole, and the shared one where it
cannot be had.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from launch.node import execute, scratch
from tests import ranks
from trainer.config.files.json_files import read_json
from trainer.config.files.layout import RunDir
from trainer.datasets.prepare import prepare
from trainer.prepared.arrays import load


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    folder = tmp_path / "cache" / "set-1234"
    folder.mkdir(parents=True)
    files = {}
    for name, content in (
        ("train-images.npy", b"pictures" * 1000),
        ("train-labels.npy", b"labels"),
    ):
        (folder / name).write_bytes(content)
        files[name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps({"files": files, "sha256": "ab" * 32}))
    return folder


def test_a_set_is_copied_once_for_all_jobs_of_a_node(prepared: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=ranks.SERVER) as jobs:
        found = set(jobs.map(scratch.copy, [prepared] * 8, [tmp_path / "ssd"] * 8))
    (own,) = found
    assert {p.name: p.read_bytes() for p in own.iterdir()} == {
        p.name: p.read_bytes() for p in prepared.iterdir()
    }
    assert [p.name for p in own.parent.iterdir()] == [
        own.name
    ] and own.parent.stat().st_mode & 0o077 == 0
    before = (own / "train-labels.npy").stat().st_mtime_ns
    assert (
        scratch.copy(prepared, tmp_path / "ssd") == own
        and (own / "train-labels.npy").stat().st_mtime_ns == before
    )
    (own / "train-labels.npy").write_bytes(b"cut")  # by whoever clears such disks
    assert (scratch.copy(prepared, tmp_path / "ssd") / "train-labels.npy").read_bytes() == b"labels"


def test_what_comes_over_otherwise_than_the_manifest_says_is_no_copy(
    prepared: Path, tmp_path: Path
) -> None:
    (prepared / "train-labels.npy").write_bytes(b"label5")
    with pytest.raises(
        scratch.NotCopied, match=r"train-labels\.npy came over as \w{12}, its manifest says \w{12}"
    ):
        scratch.copy(prepared, tmp_path / "ssd")
    assert not list((tmp_path / "ssd").glob("*/*"))
    (tmp_path / "file").touch()
    with pytest.raises(scratch.NotCopied, match="Not a directory"):
        scratch.copy(prepared, tmp_path / "file")


def test_the_trainer_reads_the_copy_or_else_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ranks.config()
    run = ranks.make_run(
        tmp_path / "runs", config, prepare(config.train.data, tmp_path, tmp_path / "cache")
    )
    monkeypatch.setenv("OWN_DISK", str(tmp_path / "ssd"))
    own = execute.on_local_scratch(run, "$OWN_DISK/data")
    assert own is not None and own.is_relative_to(tmp_path / "ssd/data")
    assert load(run, None, own).path == own and load(run, None, own).sha256 == load(run).sha256
    assert execute.on_local_scratch(run, "$NOT_SET/data") is None
    assert (
        "not from local_scratch: $NOT_SET/data is $NOT_SET/data on this node, no absolute path"
        in capsys.readouterr().out
    )
    assert execute.on_local_scratch(RunDir(tmp_path), str(tmp_path)) is None


def test_ranks_train_from_the_copy(tmp_path: Path) -> None:
    config = ranks.config(epochs=1)
    run = ranks.make_run(
        tmp_path / "runs", config, prepare(config.train.data, tmp_path, tmp_path / "cache")
    )
    own = scratch.copy(Path(read_json(run.data_record)["path"]), tmp_path / "ssd")
    (tmp_path / "cache").rename(tmp_path / "gone")
    assert ranks.train(run, "local-1", 1, BATCHYARD_PREPARED=str(own)) == 0
