"""One picture, whatever its mode, its tags and its state: the pixels that people see, or the reason why not."""

from __future__ import annotations

import importlib
import io
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.test_data import PROJECT
from trainer.config.data import ImageFolderData
from trainer.data import pictures
from trainer.data.pictures import BadPicture, Fit, decode

RNG = np.random.RandomState(0)


def config(**more: Any) -> ImageFolderData:
    return ImageFolderData.model_validate({"name": "imagefolder", "folder": "set", "size": 8, **more})


def noise(width: int = 12, height: int = 9, channels: int = 3) -> Image.Image:
    pixels = RNG.randint(0, 256, (height, width, channels)).astype(np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def torchvision(part: str) -> Any:
    """A module of torchvision, or a skip; never a skip in CI."""
    return importlib.import_module(f"torchvision.{part}") if os.environ.get("CI") else pytest.importorskip(f"torchvision.{part}")


def test_what_a_picture_becomes() -> None:
    rgb = noise()
    exact = np.asarray(rgb).transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(rgb), 3), exact)
    assert np.array_equal(decode(encoded(rgb), 1)[0], np.asarray(rgb.convert("L")))
    lossy = encoded(rgb, "JPEG")
    assert np.array_equal(decode(lossy, 3), np.asarray(Image.open(io.BytesIO(lossy))).transpose(2, 0, 1))
    grey = noise(channels=1)
    assert np.array_equal(decode(encoded(grey), 3), np.stack([np.asarray(grey)] * 3))
    assert np.array_equal(decode(encoded(grey), 1), np.asarray(grey)[None])
    one_bit = grey.point(lambda v: 255 * (v > 99)).convert("1")
    assert np.array_equal(decode(encoded(one_bit), 1)[0], 255 * np.asarray(one_bit))
    palette = rgb.quantize(16)
    assert palette.mode == "P"
    assert np.array_equal(decode(encoded(palette), 3), np.asarray(palette.convert("RGB")).transpose(2, 0, 1))
    for data in (encoded(rgb), encoded(grey), encoded(palette)):
        for channels in (1, 3):
            made = decode(data, channels)
            assert made.dtype == np.uint8 and made.shape == (channels, 9, 12) and made.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(format_: str) -> None:
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format_)  # no cyan, all magenta and yellow: red
    assert (b"Adobe" in data) == (format_ == "JPEG")  # whose numbers are stored inverted
    red = decode(data, 3)
    assert red[0].min() > 250 and red[1:].max() < 5


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.array([[0, 128, 257, 1000], [32767, 32768, 65000, 65535]], np.uint16)
    for format_ in ("PNG", "TIFF"):
        made = decode(encoded(Image.fromarray(wide), format_), 1)
        assert np.array_equal(made[0], np.rint(wide / 257))
    deep = Image.fromarray(np.array([[0, 70_000]], np.int32))
    with pytest.raises(BadPicture, match="32 bits, whose range is not known"):
        decode(encoded(deep, "TIFF"), 1)


def test_what_is_transparent_is_laid_on_white() -> None:
    rgba = np.dstack([np.asarray(noise()), np.full((9, 12), 255, np.uint8)])
    rgba[0, :, 3], rgba[1, :, 3] = 0, 128
    made = decode(encoded(Image.fromarray(rgba)), 3).transpose(1, 2, 0)
    assert (made[0] == 255).all() and np.array_equal(made[2:], rgba[2:, :, :3])
    assert np.abs(made[1] - (rgba[1, :, :3] * (128 / 255) + 255 * (127 / 255))).max() <= 1
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert (decode(encoded(palette, transparency=1), 3) == 255).all()
    assert (decode(encoded(palette, transparency=b"\xff\x00"), 1) == 255).all()  # one opacity for each colour
    assert np.array_equal(decode(encoded(palette, transparency=0), 3)[:, 0, 0], [10, 20, 30])
    assert (decode(encoded(Image.new("L", (4, 4), 7), transparency=7), 1) == 255).all()  # of a colour, not an alpha channel
    assert (decode(encoded(Image.new("LA", (4, 4), (7, 0))), 3) == 255).all()
    assert (decode(encoded(Image.new("1", (4, 4), 0), transparency=0), 1) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    """The eight ways to hold a camera: the marked corner comes back to the top left, and the longer side lies."""
    pixels = np.full((16, 32), 255, np.uint8)
    pixels[:8, :8] = 0
    held = pixels.T if orientation >= 5 else pixels
    held = held[::-1] if orientation in (3, 4, 6, 7) else held
    held = held[:, ::-1] if orientation in (2, 3, 7, 8) else held
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = decode(encoded(Image.fromarray(np.ascontiguousarray(held)), "JPEG", exif=exif, quality=100), 1)
    assert np.abs(made[0].astype(int) - pixels).max() < 8


def test_spoilt_tags_do_not_spoil_a_picture(tmp_path: Path) -> None:
    rgb = noise()
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\x00" + b"\x12\x01\x03\x00\xff"  # says 255 tags, holds a part of one
    data = encoded(rgb, "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(data)
    code = f"from trainer.data.pictures import decode; print(decode(open({str(tmp_path / 'x.jpg')!r}, 'rb').read(), 3).sum())"
    done = subprocess.run([sys.executable, "-X", "dev", "-W", "ignore::ResourceWarning", "-c", code], cwd=PROJECT,
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr  # PYTHONWARNINGS=error: Pillow's warning of it would be one
    assert int(done.stdout) == np.asarray(Image.open(io.BytesIO(encoded(rgb, "JPEG")))).sum()


def test_the_first_frame_and_other_formats() -> None:
    frames = [noise(), noise(), noise()]
    first = np.asarray(frames[0]).transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), 3), first)
    assert np.array_equal(decode(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), 3), first)
    assert np.array_equal(decode(encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]), 3), first)
    grey = [noise(channels=1) for _ in range(3)]
    gif = encoded(grey[0], "GIF", save_all=True, append_images=grey[1:])
    assert Image.open(io.BytesIO(gif)).n_frames == 3 and np.array_equal(decode(gif, 1)[0], np.asarray(grey[0]))
    assert np.array_equal(decode(encoded(frames[0], "BMP"), 3), first)
    assert np.array_equal(decode(encoded(frames[0], "PPM"), 3), first)


def bomb() -> bytes:
    """A megabyte that says it is 40,000 x 40,000 pixels."""
    small = bytearray(encoded(Image.new("1", (8, 8))))
    header = b"IHDR" + (40_000).to_bytes(4, "big") * 2 + bytes(small[24:29])
    small[12:29] = header
    small[29:33] = zlib.crc32(header).to_bytes(4, "big")
    return bytes(small)


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "an empty file"),
    "text": (lambda: b"<html>404 Not Found</html>", "no picture by its content (known: JPEG, PNG, PPM, BMP, TIFF, WEBP, GIF)"),
    "truncated JPEG": (lambda: encoded(noise(200, 200), "JPEG")[:9000], "image file is truncated"),
    "truncated PNG": (lambda: encoded(noise(200, 200))[:9000], "image file is truncated"),
    "half a header": (lambda: encoded(noise(), "JPEG")[:20], "no picture by its content"),
    "bomb": (bomb, "more than 89,478,485 pixels: a decompression bomb?"),
    "a warning's bomb": (lambda: encoded(Image.new("1", (10_000, 9_000))), "more than 89,478,485 pixels: a decompression bomb?"),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n", "no picture by its content"),
    "broken chunk": (lambda: encoded(noise())[:60] + b"\0\0\0\xff" + encoded(noise())[64:], ""),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_picture_says_why(case: str) -> None:
    make, reason = BAD[case]
    with pytest.raises(BadPicture) as caught:
        decode(make(), 3)
    assert str(caught.value).startswith(reason) and "0x" not in str(caught.value)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (40, 33), (33, 33), (64, 64), (65, 64), (301, 64)])
@pytest.mark.parametrize(("crop", "resize", "keep_aspect"), [(64, None, True), (56, 64, True), (33, 64, False)])
def test_resized_and_cropped_as_torchvision_does(size: tuple[int, int], crop: int, resize: int | None, keep_aspect: bool) -> None:
    transforms = torchvision("transforms")
    side = resize or crop
    theirs = transforms.Compose([transforms.Resize(side if keep_aspect else (side, side)), transforms.CenterCrop(crop)])
    image = noise(*size)
    ours = Fit.of(config(size=crop, resize=resize, keep_aspect=keep_aspect))(image)
    assert np.array_equal(ours, np.asarray(theirs(image)).transpose(2, 0, 1))


def test_a_picture_like_a_thread_is_refused_not_unrolled() -> None:
    with pytest.raises(BadPicture, match=r"1x3000 is too narrow to be resized to 224x672000"):
        Fit.of(config(size=224))(noise(1, 3000))


def test_extensions_are_torchvisions() -> None:
    folder = torchvision("datasets.folder")
    assert pictures.EXTENSIONS == folder.IMG_EXTENSIONS
