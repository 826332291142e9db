"""Folders of pictures: listed and split as torchvision does, prepared once and whole, refused with
every reason at once.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import ranks
from tests.test_data import PROJECT, call, real_data, tool
from tests.test_pictures import BAD, config, encoded, noise, torchvision
from trainer.config.data import ImageFolderData
from trainer.datasets import imagefolder
from trainer.datasets.prepare import prepare
from trainer.prepared import pictures
from trainer.prepared.arrays import Encoded, Prepared, load
from trainer.prepared.errors import DataError
from trainer.prepared.pictures import Fit


def settings(**more: Any) -> dict[str, Any]:
    return config(**more).model_dump(exclude_unset=True)


def picture_set(
    root: Path, names: dict[str, int], folders: tuple[str, ...] = ("train", "val")
) -> Path:
    """`names`: class -> pictures in each of the folders, of differing sizes."""
    for folder in folders:
        for name, count in names.items():
            place = root / "set" / folder / name
            place.mkdir(parents=True)
            for i in range(count):
                (place / f"{i}.png").write_bytes(encoded(noise(10 + i % 5, 12 - i % 3)))
    return root / "set"


def prepared(
    folder: Path, data: ImageFolderData, raw: Path | None = None
) -> tuple[dict[str, Any], Prepared]:
    manifest = prepare(data, raw or folder, folder / "cache")
    return manifest, load(
        ranks.make_run(folder / "runs", ranks.config(), manifest), data.validation
    )


def refused(folder: Path, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config(**more), folder, folder / "cache")
    assert not list((folder / "cache").glob("prepared/*"))
    return str(caught.value)


def test_listed_as_torchvision_lists_it(tmp_path: Path) -> None:
    datasets = torchvision("datasets")
    names = ["角度正", "a b", 'it\'s "quoted"', "Zebra", "zebra", "new\nline", "ünï"]
    root = picture_set(tmp_path, dict.fromkeys(names, 3))
    odd = root / "train" / "zebra"
    for name in (
        "10.PNG",
        "9.png",
        "B.jPeG",
        "a.tiff",
        "角.webp",
        "sp ace.bmp",
        "n\nl.pgm",
        "deep/er/1.png",
        "deep.png/2.png",
    ):
        (odd / name).parent.mkdir(parents=True, exist_ok=True)
        (odd / name).write_bytes(encoded(noise(8, 8)))
    for name in ("notes.txt", "a.svg", "png", "Thumbs.db"):
        (odd / name).write_text("no picture by its name")
    manifest, data = prepared(tmp_path, config(size=4))
    theirs = datasets.ImageFolder(str(root / "train"))
    assert (
        manifest["classes"] == theirs.classes
        and manifest["samples"] == {"train": 30, "test": 21}
        and manifest["skipped"] == []
    )
    assert data.splits["train"].labels.tolist() == theirs.targets
    fit = Fit.of(config(size=4))
    for ours, (theirs_path, _) in zip(data.splits["train"].images, theirs.samples, strict=True):
        assert np.array_equal(ours, fit(Image.open(theirs_path).convert("RGB"))), theirs_path


@pytest.mark.parametrize("fractions", [[0.8, 0.2], [0.7, 0.1, 0.2], [0.5, 0.25, 0.25]])
def test_split_as_random_split_splits_it(tmp_path: Path, fractions: list[float]) -> None:
    import torch

    datasets = torchvision("datasets")
    picture_set(tmp_path, {"x": 11, "y": 26}, ("",))
    manifest, data = prepared(tmp_path, config(fractions=fractions, split_seed=330))
    whole = datasets.ImageFolder(str(tmp_path / "set"))
    parts = torch.utils.data.random_split(
        whole, fractions, generator=torch.Generator().manual_seed(330)
    )
    assert list(manifest["samples"]) == (
        ["train", "test"] if len(fractions) == 2 else ["train", "val", "test"]
    )
    fit = Fit.of(config())
    for split, part in zip(manifest["samples"], parts, strict=True):
        ours = data.splits[split]
        assert ours.labels.tolist() == [whole.targets[i] for i in part.indices]
        for pixels, index in zip(ours.images, part.indices, strict=True):
            assert np.array_equal(pixels, fit(whole[index][0]))
    other = prepare(config(fractions=fractions, split_seed=331), tmp_path, tmp_path / "cache")
    assert other["sha256"] != manifest["sha256"]


def test_the_facades_folder_of_every_size_and_mode(tmp_path: Path) -> None:
    """One folder, 角度正, split .7/.2/.1 by seed 330, resized to exactly 256x256 and cut to 224, index
    by index as random_split.
    """
    import torch

    datasets, transforms = torchvision("datasets"), torchvision("transforms")
    modes = ["RGB", "RGBA", "L", "P", "1", "CMYK", "LA", "16 bits"]
    for number in range(44):
        place = tmp_path / "角度正" / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        mode = modes[number % len(modes)]
        image = noise(20 + 13 * number % 300, 30 + 31 * number % 170).convert(
            "L" if mode == "16 bits" else mode
        )
        if mode == "16 bits":  # 257 * 255 = 65535: as bright as the grey picture
            image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
        image.save(place / f"{number:02}.{'jpg' if mode == 'CMYK' else 'png'}")
    data = config(
        folder="角度正",
        fractions=[0.7, 0.2, 0.1],
        split_seed=330,
        size=224,
        resize=256,
        keep_aspect=False,
    )
    manifest, found = prepared(tmp_path, data)
    whole = datasets.ImageFolder(str(tmp_path / "角度正"))
    parts = torch.utils.data.random_split(
        whole, [0.7, 0.2, 0.1], generator=torch.Generator().manual_seed(330)
    )
    assert manifest["classes"] == ["0", "1"] and manifest["samples"] == {
        "train": 31,
        "val": 9,
        "test": 4,
    }
    theirs = transforms.Compose([transforms.Resize((256, 256)), transforms.CenterCrop(224)])
    for split, part in zip(manifest["samples"], parts, strict=True):
        assert found.splits[split].labels.tolist() == [whole.targets[i] for i in part.indices]
        for pixels, index in zip(found.splits[split].images, part.indices, strict=True):
            mode, picture = (
                modes[int(Path(whole.samples[index][0]).stem) % len(modes)],
                whole[index][0],
            )
            if mode == "16 bits":  # torchvision's loader clips them at 255
                grey = np.asarray(Image.open(whole.samples[index][0])) // 257
                picture = Image.fromarray(grey.astype(np.uint8)).convert("RGB")
            if mode not in ("RGBA", "LA"):  # laid on white on purpose
                assert np.array_equal(pixels, np.asarray(theirs(picture)).transpose(2, 0, 1))


def test_a_folder_that_is_not_there_is_told_in_seconds(tmp_path: Path) -> None:
    done = call(tool(tmp_path, settings()))
    assert done.returncode == 2 and done.stdout == "" and "Traceback" not in done.stderr
    assert (
        f"imagefolder: there is no folder {tmp_path}/data/set. Put it there, or name the folder"
        " that holds it by" in done.stderr
    )
    assert (
        "--data-dir" in done.stderr
        and "BATCHYARD_DATA" in done.stderr
        and "`digits` runs without" in done.stderr
    )


def test_everything_wrong_with_the_folders_at_once(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 2, "bees": 2}, ("train", "val", "more"))
    (root / "train/wasps").mkdir()
    (root / "train/loose.JPG").touch()
    (root / "val/bees").rename(root / "val/wesps")
    said = refused(tmp_path, validation_folder="extra")
    assert said.splitlines() == [
        (
            f"imagefolder: 1 picture(s) lie beside the class folders of {root}/train (loose.JPG,"
            " ...): move each into its class's folder, or out of this one"
        ),
        (
            f"  {root}/train/wasps holds no picture ({' '.join(pictures.EXTENSIONS)}): "
            "put its pictures there, or remove the folder"
        ),
        f"  {root} has no folder 'extra' (train.data.validation_folder); it has more, train, val",
        (
            f"  {root}/train has no class folder 'wesps', which {root}/val has: every split needs"
            " the same classes"
        ),
        (
            f"  {root}/val has no class folder 'bees', which {root}/train has: every split needs"
            " the same classes"
        ),
        (
            f"  {root}/val has no class folder 'wasps', which {root}/train has: every split needs"
            " the same classes"
        ),
    ]


def test_folders_that_are_split_already_or_not_at_all(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 2, "bees": 2})
    said = refused(tmp_path, fractions=[0.5, 0.5])  # train and val would be two classes
    assert (
        f"the folders train, val of {root} hold class folders themselves: leave out"
        " train.data.fractions" in said
    )
    assert "folder: set/train" in said
    (tmp_path / "flat/set").mkdir(parents=True)
    (tmp_path / "flat/set/1.png").touch()
    assert "has 0 class folder(s); expected one for each class, at least two" in refused(
        tmp_path / "flat", fractions=[0.5, 0.5]
    )
    few = tmp_path / "few"
    picture_set(few, {"a": 1, "b": 1}, ("",))
    assert "2 pictures by fractions [0.9, 0.05, 0.05] leave a split without any" in refused(
        few, fractions=[0.9, 0.05, 0.05]
    )


def test_a_link_that_leads_back_is_told(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 2, "bees": 2})
    (root / "train/ants/again").symlink_to(root / "train/ants")
    assert f"{root}/train/ants/again leads back to a folder above it" in refused(tmp_path)
    (root / "train/ants/again").unlink()
    # elsewhere is fine, as it is for torchvision
    (root / "train/ants/more").symlink_to(root / "val/ants")
    assert prepare(config(), tmp_path, tmp_path / "cache")["samples"] == {"train": 6, "test": 4}


def spoil(root: Path) -> dict[str, str]:
    """Puts something unreadable of each kind into the set.

    Returns name -> the start of its reason.
    """
    train = root / "train/ants"
    found = {}
    for number, (case, (make, reason)) in enumerate(BAD.items()):
        (train / f"bad {number} {case}.jpg").write_bytes(make())
        found[f"train/ants/bad {number} {case}.jpg"] = reason
    (train / "directory.jpg").mkdir()
    (train / "gone.png").symlink_to("nowhere")
    os.mkfifo(train / "pipe.jpg")
    (train / "broken.jpg").symlink_to("/proc/self/mem")  # reading fails: Input/output error
    locked = root / "val/bees/locked.png"
    locked.write_bytes(encoded(noise()))
    locked.chmod(0)
    found |= {
        "train/ants/directory.jpg": "a folder, not a picture",
        "train/ants/gone.png": "a link to nothing",
        "train/ants/pipe.jpg": "not a file",
        "train/ants/broken.jpg": "Input/output error",
        "val/bees/locked.png": "Permission denied",
    }
    return found


# a root that may not read everything, as everybody else
BOUND = [
    "setpriv",
    "--bounding-set=-dac_override,-dac_read_search",
    "--inh-caps=-dac_override,-dac_read_search",
]


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's right to read everything")
def test_all_that_cannot_be_read_is_told_at_once_or_left_out(tmp_path: Path) -> None:
    root = picture_set(tmp_path / "data", {"ants": 5, "bees": 5})
    expected = spoil(root)
    done = call([*BOUND, *tool(tmp_path, settings())])
    assert done.returncode == 2 and done.stdout == "", done.stderr
    lines = done.stderr.splitlines()
    assert (
        lines[0]
        == f"imagefolder: {len(expected)} of {20 + len(expected) - 1} pictures in {root} cannot be"
        " read:"
    )
    for name, reason in expected.items():
        (line,) = [line for line in lines if line.startswith(f"  {name}: ")]
        assert line.startswith(f"  {name}: {reason}")
    assert "skip_bad: true" in lines[-1] and len(lines) == len(expected) + 2
    assert not list((tmp_path / "cache/prepared").iterdir())

    done = call([*BOUND, *tool(tmp_path, settings(skip_bad=True))])
    assert done.returncode == 0, done.stderr
    manifest = json.loads(done.stdout)
    assert {s["name"] for s in manifest["skipped"]} == set(expected) and manifest["samples"] == {
        "train": 10,
        "test": 10,
    }
    assert all(s["reason"].startswith(expected[s["name"]]) for s in manifest["skipped"])
    clean = tmp_path / "clean"
    (clean / "set").mkdir(parents=True)
    for file in root.rglob("*.png"):
        if file.is_file() and file.name != "locked.png":
            target = clean / "set" / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    # the same set without them
    assert prepare(config(), clean, clean / "cache")["sha256"] == manifest["sha256"]


@pytest.mark.skipif(os.geteuid() != 0, reason="drops root's right to read everything")
def test_a_folder_that_may_not_be_listed_is_told(tmp_path: Path) -> None:
    root = picture_set(tmp_path / "data", {"ants": 1, "bees": 1})
    deep = root / "train/ants/deep"
    deep.mkdir(mode=0)
    done = call([*BOUND, *tool(tmp_path, settings())])
    assert (done.returncode, done.stderr) == (
        2,
        f"imagefolder: {deep} cannot be listed: Permission denied\n",
    )
    deep.rmdir()
    (root / "train").chmod(0)
    done = call([*BOUND, *tool(tmp_path, settings())])
    assert (
        done.returncode == 2
        and "Permission denied" in done.stderr
        and "Traceback" not in done.stderr
    )


def test_many_bad_pictures_are_counted_not_all_shown(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 2, "bees": 2})
    for i in range(130):
        (root / f"train/ants/bad{i:03}.jpg").write_text("text")
    (root / "train/ants/new\nline.jpg").touch()
    (root / "train/ants" / os.fsdecode(b"\xff.jpg")).touch()  # a name that is no text
    said = refused(tmp_path)
    assert said.splitlines()[0] == f"imagefolder: 132 of 140 pictures in {root} cannot be read:"
    assert said.count("/bad") == 20 and "  and 112 more" in said
    manifest = prepare(config(skip_bad=True), tmp_path, tmp_path / "cache")
    assert len(manifest["skipped"]) == 132
    assert {r"'train/ants/new\nline.jpg'", r"'train/ants/\udcff.jpg'"} <= {
        s["name"] for s in manifest["skipped"]
    }
    for file in (root / "val/bees").iterdir():
        file.write_text("text")
    for file in (root / "val/ants").iterdir():
        file.write_text("text")
    assert "nothing is left of: test" in refused_beside(tmp_path, skip_bad=True)


def refused_beside(folder: Path, **more: Any) -> str:
    with pytest.raises(DataError) as caught:
        prepare(config(**more), folder, folder / "cache")
    return str(caught.value)


def test_the_cache_knows_names_contents_and_settings(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 3, "bees": 3})
    cache = tmp_path / "cache"
    first = prepare(config(), tmp_path, cache)
    same = config(
        random_horizontal_flip=True,
        random_crop_padding=1,
        validation=0.5,
        mean=[0.5] * 3,
        std=[1.0] * 3,
    )
    assert first["made"] and not prepare(same, tmp_path, cache)["made"]  # what happens on the fly
    for more in (
        {"size": 9},
        {"channels": 1},
        {"resize": 10},
        {"keep_aspect": False},
        {"skip_bad": True},
        {"random_resized_crop": {}},
    ):
        assert prepare(config(**more), tmp_path, cache)["path"] != first["path"], more
    file = root / "train/ants/1.png"
    content = file.read_bytes()
    os.utime(file, (1, 1))
    again = prepare(config(), tmp_path, cache)
    assert (again["path"], again["made"]) == (first["path"], False)  # the same contents
    file.write_bytes(content + b"\0")
    assert prepare(config(), tmp_path, cache)["path"] != first["path"]
    file.write_bytes(content)
    assert prepare(config(), tmp_path, cache)["path"] == first["path"]
    file.rename(file.with_name("x.png"))
    assert prepare(config(), tmp_path, cache)["made"]


def test_statistics_and_encoded_pictures(tmp_path: Path) -> None:
    root = picture_set(tmp_path, {"ants": 40, "bees": 50})
    plain, _ = prepared(tmp_path, config())
    manifest, data = prepared(tmp_path, config(random_resized_crop={}))
    train, test = data.splits["train"], data.splits["test"]
    assert (
        isinstance(train.images, Encoded)
        and train.images.shape == (90, 3, 8, 8)
        and isinstance(test.images, np.ndarray)
    )
    assert manifest["mean"] == plain["mean"] and manifest["std"] == plain["std"]
    # the very bytes of the files, in their order; read as an array they are resized and cropped
    files = [
        root / "train" / name / f"{i}.png"
        for name, n in (("ants", 40), ("bees", 50))
        for i in sorted(range(n), key=str)
    ]
    assert train.images.data.tobytes() == b"".join(file.read_bytes() for file in files)
    uniform = np.load(Path(plain["path"]) / "train-images.npy")
    assert np.array_equal(train.read(30, 60)[0], uniform[30:60])
    pixels = uniform.astype(np.float64) / 255
    np.testing.assert_allclose(manifest["mean"], pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(manifest["std"], pixels.std(axis=(0, 2, 3)), rtol=1e-12)
    held = load(ranks.make_run(tmp_path / "runs", ranks.config(), manifest), 0.2).splits
    assert (len(held["train"]), len(held["val"])) == (72, 18)
    assert np.array_equal(held["val"].read(3, 6)[0], uniform[held["val"].chosen[3:6]])


def test_a_picture_that_was_spoilt_afterwards_is_named(tmp_path: Path) -> None:
    picture_set(tmp_path, {"ants": 4, "bees": 4})
    manifest, data = prepared(tmp_path, config(random_resized_crop={}))
    offsets = np.load(Path(manifest["path"]) / "train-offsets.npy")
    with (Path(manifest["path"]) / "train-encoded.bin").open("r+b") as file:
        file.seek(offsets[5])
        file.write(bytes(int(offsets[6] - offsets[5])))
    assert data.splits["train"].images.image(4).size == (10, 12)
    with pytest.raises(
        DataError,
        match=(
            r"train/bees/1.png could be read when it was prepared and now cannot .*: remove .* and "
        ),
    ):
        data.splits["train"].read(0, 8)


# --- interrupted, at once, on a full or a read-only disk


def test_a_killed_prepare_leaves_nothing_that_counts(tmp_path: Path) -> None:
    root = picture_set(tmp_path / "data", {"ants": 1, "bees": 1})
    large = encoded(noise(900, 900), "JPEG")
    for i in range(200):
        (root / f"train/ants/{i}.jpg").write_bytes(large)
    argv = tool(tmp_path, settings(random_resized_crop={}, size=64))
    process = subprocess.Popen(
        argv, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 60

    def begun() -> bool:
        return any(
            f.stat().st_size > 0
            for f in (tmp_path / "cache").glob("prepared/.imagefolder-*.tmp/train-encoded.bin")
        )

    while not begun():
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGSTOP)  # as if the disk were slow
    stopped = time.monotonic()
    while time.monotonic() < stopped + imagefolder.PROGRESS_S:
        time.sleep(0.05)
    process.send_signal(signal.SIGCONT)
    assert re.fullmatch(r"set: [1-9]\d* of 204 pictures, \d+ s left\n", process.stderr.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list((tmp_path / "cache").glob("prepared/imagefolder-*"))
    both = [
        subprocess.Popen(argv, cwd=PROJECT, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert sorted(f["made"] for f in found) == [False, True] and found[0]["samples"] == {
        "train": 202,
        "test": 2,
    }
    assert not [p for p in (tmp_path / "cache/prepared").iterdir() if p.name.startswith(".")]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_full_and_a_read_only_disk(tmp_path: Path) -> None:
    picture_set(tmp_path / "data", {"ants": 40, "bees": 40})
    cache = tmp_path / "cache"
    cache.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(cache)], check=True)
    argv = tool(tmp_path, settings(size=100))
    try:
        full = call(argv)
        assert (
            full.returncode == 2
            and f"preparing imagefolder in {cache}: [Errno 28] No space left on device"
            in full.stderr
        )
        assert not list(cache.glob("prepared/*")) and not list(cache.glob("prepared/.*.tmp"))
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        locked = call(argv)
        assert (
            locked.returncode == 2
            and "Read-only file system" in locked.stderr
            and "Traceback" not in locked.stderr
        )
        subprocess.run(["mount", "-o", "remount,rw,size=64m", str(cache)], check=True)
        assert json.loads(call(argv).stdout)["made"]
        subprocess.run(["mount", "-o", "remount,ro", str(cache)], check=True)
        assert not json.loads(call(argv).stdout)["made"]  # what is there is used
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """200 pictures become 90 MB, which prepare never holds: measured as the peak of a process of
    its own.
    """
    root = picture_set(tmp_path, {"ants": 1, "bees": 1})
    data = encoded(noise(64, 64), "JPEG")
    for i in range(200):
        (root / f"train/ants/{i}.jpg").write_bytes(data)
    code = (
        "import resource, sys; from pathlib import Path; from tests.test_imagefolder import config,"
        " prepare\nbefore ="
        " resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nprepare(config(size=400),"
        " Path(sys.argv[1]), Path(sys.argv[1]) /"
        " 'cache')\nprint((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)"
    )
    done = call([sys.executable, "-c", code, str(tmp_path)])
    written = (
        next((tmp_path / "cache/prepared").iterdir()) / "train-images.npy"
    ).stat().st_size / 2**20
    assert written > 90 and float(done.stdout) < 80, done.stdout + done.stderr


# --- the real thing


def test_ants_and_bees(tmp_path: Path) -> None:
    manifest, data = prepared(
        tmp_path, config(folder="hymenoptera_data", size=64, resize=72), real_data()
    )
    assert manifest["classes"] == ["ants", "bees"] and manifest["samples"] == {
        "train": 244,
        "test": 153,
    }
    assert np.bincount(data.splits["train"].labels).tolist() == [123, 121]
    assert np.bincount(data.splits["test"].labels).tolist() == [70, 83]
    assert manifest["shape"] == [3, 64, 64] and manifest["skipped"] == []


def test_cifar10_as_files_is_cifar10(tmp_path: Path) -> None:
    """Two of the ten classes, by links: each array of cifar10 is one of the files' pictures."""
    raw = real_data()
    for split in ("train", "test"):
        for name in ("bird", "truck"):
            (tmp_path / "set" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / split / name).symlink_to(raw / "cifar10-images" / split / name)
    manifest, data = prepared(tmp_path, config(size=32, test_folder="test"))
    assert manifest["samples"] == {"train": 10_000, "test": 2_000}
    whole = prepare(
        ranks.config(data={"name": "cifar10"}).train.data,
        raw,
        tmp_path / "cache",
        allow_unverified=True,
    )
    arrays = load(ranks.make_run(tmp_path / "runs", ranks.config(), whole)).splits
    for split in ("train", "test"):
        for ours, theirs in ((0, 2), (1, 9)):
            files = data.splits[split].images[data.splits[split].labels == ours]
            array = arrays[split].images[arrays[split].labels == theirs]
            assert sorted(p.tobytes() for p in files) == sorted(p.tobytes() for p in array), (
                split,
                ours,
            )
