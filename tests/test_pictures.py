"""One picture, whatever its mode, its tags and its state: the pixels that people see, or the reason
why not.
"""

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
from trainer.prepared import masks, pictures
from trainer.prepared.pictures import BadPicture, Fit, decode

RNG = np.random.RandomState(0)


def config(**more: Any) -> ImageFolderData:
    return ImageFolderData.model_validate(
        {"name": "imagefolder", "folder": "set", "size": 8, **more}
    )


def noise(width: int = 12, height: int = 9, channels: int = 3) -> Image.Image:
    pixels = RNG.randint(0, 256, (height, width, channels)).astype(np.uint8)
    return Image.fromarray(pixels if channels > 1 else pixels[..., 0])


def encoded(image: Image.Image, format_: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


def torchvision(part: str) -> Any:
    """A module of torchvision, or a skip; never a skip in CI."""
    return (
        importlib.import_module(f"torchvision.{part}")
        if os.environ.get("CI")
        else pytest.importorskip(f"torchvision.{part}")
    )


def test_what_a_picture_becomes() -> None:
    rgb = noise()
    exact = np.asarray(rgb).transpose(2, 0, 1)
    assert np.array_equal(decode(encoded(rgb), 3), exact)
    assert np.array_equal(decode(encoded(rgb), 1)[0], np.asarray(rgb.convert("L")))
    lossy = encoded(rgb, "JPEG")
    assert np.array_equal(
        decode(lossy, 3), np.asarray(Image.open(io.BytesIO(lossy))).transpose(2, 0, 1)
    )
    grey = noise(channels=1)
    assert np.array_equal(decode(encoded(grey), 3), np.stack([np.asarray(grey)] * 3))
    assert np.array_equal(decode(encoded(grey), 1), np.asarray(grey)[None])
    one_bit = grey.point(lambda v: 255 * (v > 99)).convert("1")
    assert np.array_equal(decode(encoded(one_bit), 1)[0], 255 * np.asarray(one_bit))
    palette = rgb.quantize(16)
    assert palette.mode == "P"
    assert np.array_equal(
        decode(encoded(palette), 3), np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    )
    for data in (encoded(rgb), encoded(grey), encoded(palette)):
        for channels in (1, 3):
            made = decode(data, channels)
            assert (
                made.dtype == np.uint8
                and made.shape == (channels, 9, 12)
                and made.flags["C_CONTIGUOUS"]
            )


@pytest.mark.parametrize("format_", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(format_: str) -> None:
    # no cyan, all magenta and yellow: red
    data = encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), format_)
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
    # one opacity for each colour
    assert (decode(encoded(palette, transparency=b"\xff\x00"), 1) == 255).all()
    assert np.array_equal(decode(encoded(palette, transparency=0), 3)[:, 0, 0], [10, 20, 30])
    # of a colour, not an alpha channel
    assert (decode(encoded(Image.new("L", (4, 4), 7), transparency=7), 1) == 255).all()
    assert (decode(encoded(Image.new("LA", (4, 4), (7, 0))), 3) == 255).all()
    assert (decode(encoded(Image.new("1", (4, 4), 0), transparency=0), 1) == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(orientation: int) -> None:
    """The eight ways to hold a camera: the marked corner comes back to the top left, and the longer
    side lies.
    """
    pixels = np.full((16, 32), 255, np.uint8)
    pixels[:8, :8] = 0
    held = pixels.T if orientation >= 5 else pixels
    held = held[::-1] if orientation in (3, 4, 6, 7) else held
    held = held[:, ::-1] if orientation in (2, 3, 7, 8) else held
    exif = Image.Exif()
    exif[0x0112] = orientation
    made = decode(
        encoded(Image.fromarray(np.ascontiguousarray(held)), "JPEG", exif=exif, quality=100), 1
    )
    assert np.abs(made[0].astype(int) - pixels).max() < 8


def test_spoilt_tags_do_not_spoil_a_picture(tmp_path: Path) -> None:
    rgb = noise()
    # says 255 tags, holds a part of one
    exif = b"Exif\x00\x00II*\x00\x08\x00\x00\x00\xff\x00" + b"\x12\x01\x03\x00\xff"
    data = encoded(rgb, "JPEG", exif=exif)
    (tmp_path / "x.jpg").write_bytes(data)
    code = (
        f"from trainer.prepared.pictures import decode; print(decode(open({str(tmp_path / 'x.jpg')!r},"
        " 'rb').read(), 3).sum())"
    )
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "ignore::ResourceWarning", "-c", code],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    # PYTHONWARNINGS=error: Pillow's warning of it would be one
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == np.asarray(Image.open(io.BytesIO(encoded(rgb, "JPEG")))).sum()


def test_the_first_frame_and_other_formats() -> None:
    frames = [noise(), noise(), noise()]
    first = np.asarray(frames[0]).transpose(2, 0, 1)
    assert np.array_equal(
        decode(encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), 3), first
    )
    assert np.array_equal(
        decode(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), 3), first
    )
    assert np.array_equal(
        decode(
            encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]), 3
        ),
        first,
    )
    grey = [noise(channels=1) for _ in range(3)]
    gif = encoded(grey[0], "GIF", save_all=True, append_images=grey[1:])
    assert Image.open(io.BytesIO(gif)).n_frames == 3 and np.array_equal(
        decode(gif, 1)[0], np.asarray(grey[0])
    )
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
    "text": (
        lambda: b"<html>404 Not Found</html>",
        (
            "no picture by its content (known: JPEG, PNG, PPM, BMP, TIFF, WEBP, GIF, AVIF, DIB,"
            " JPEG2000)"
        ),
    ),
    "truncated JPEG": (lambda: encoded(noise(200, 200), "JPEG")[:9000], "image file is truncated"),
    "truncated PNG": (lambda: encoded(noise(200, 200))[:9000], "image file is truncated"),
    "half a header": (lambda: encoded(noise(), "JPEG")[:20], "no picture by its content"),
    "bomb": (bomb, "more than 89,478,485 pixels: a decompression bomb?"),
    "a warning's bomb": (
        lambda: encoded(Image.new("1", (10_000, 9_000))),
        "more than 89,478,485 pixels: a decompression bomb?",
    ),
    "PostScript": (
        lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n",
        "no picture by its content",
    ),
    "broken chunk": (lambda: encoded(noise())[:60] + b"\0\0\0\xff" + encoded(noise())[64:], ""),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_picture_says_why(case: str) -> None:
    make, reason = BAD[case]
    with pytest.raises(BadPicture) as caught:
        decode(make(), 3)
    assert str(caught.value).startswith(reason) and " at 0x" not in str(caught.value)


@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (40, 33), (33, 33), (64, 64), (65, 64), (301, 64)]
)
@pytest.mark.parametrize(
    ("crop", "resize", "keep_aspect"), [(64, None, True), (56, 64, True), (33, 64, False)]
)
def test_resized_and_cropped_as_torchvision_does(
    size: tuple[int, int], crop: int, resize: int | None, keep_aspect: bool
) -> None:
    transforms = torchvision("transforms")
    side = resize or crop
    theirs = transforms.Compose(
        [transforms.Resize(side if keep_aspect else (side, side)), transforms.CenterCrop(crop)]
    )
    image = noise(*size)
    ours = Fit.of(config(size=crop, resize=resize, keep_aspect=keep_aspect))(image)
    assert np.array_equal(ours, np.asarray(theirs(image)).transpose(2, 0, 1))


def test_a_picture_like_a_thread_is_refused_not_unrolled() -> None:
    with pytest.raises(BadPicture, match=r"1x3000 is too narrow to be resized to 224x672000"):
        Fit.of(config(size=224))(noise(1, 3000))


LEFT_OUT = {  # what Pillow knows, or has known, beside them
    "would start a program": {".eps", ".ps"},
    "are read by no decoder of Pillow's own": {
        ".bufr",
        ".grib",
        ".h5",
        ".hdf",
        ".wmf",
        ".emf",
        ".mpg",
        ".mpeg",
    },
    "are only written": {".pdf", ".palm"},
    "have no signature, so that any bytes might be taken for them": {
        ".tga",
        ".icb",
        ".vda",
        ".vst",
        ".pcx",
        ".pcd",
    },
    "hold numbers whose range is not known": {".pfm", ".fit", ".fits", ".im"},
    "hold icons, textures, brushes and other parts of programs": {
        ".ico",
        ".icns",
        ".cur",
        ".dds",
        ".blp",
        ".ftc",
        ".ftu",
        ".gbr",
        ".psd",
        ".xbm",
        ".xpm",
        ".fli",
        ".flc",
        ".dcx",
        ".iim",
    },
    "are of systems of the past": {".msp", ".pxr", ".bw", ".rgb", ".rgba", ".sgi", ".ras", ".qoi"},
}


def test_the_endings_are_what_pillow_decodes_but_for_those_that_are_left_out_for_a_reason() -> None:
    """Red where a new Pillow reads more: somebody decides."""
    assert set(torchvision("datasets.folder").IMG_EXTENSIONS) < set(pictures.EXTENSIONS)
    Image.init()
    left_out = {ending for endings in LEFT_OUT.values() for ending in endings}
    assert set(Image.registered_extensions()) - left_out == set(pictures.EXTENSIONS)
    assert not left_out & set(pictures.EXTENSIONS) and not {"EPS", "PDF", "WMF"} & set(
        pictures.FORMATS
    )
    assert set(pictures.FORMATS) <= set(pictures.ENDINGS) <= set(Image.OPEN)
    for ending, format_ in Image.registered_extensions().items():
        if ending in pictures.EXTENSIONS:
            assert format_ == "MPO" or ending in pictures.ENDINGS[format_]
            assert decode(encoded(noise(32, 32), format_), 3).shape == (3, 32, 32), ending


def test_only_the_first_frame_is_taken_and_that_is_known() -> None:
    frames = [noise(32, 32) for _ in range(3)]
    for format_ in ("GIF", "PNG", "TIFF", "WEBP", "AVIF"):
        several = encoded(frames[0], format_, save_all=True, append_images=frames[1:])
        assert (
            pictures.look(several, 3).several
            and not pictures.look(encoded(frames[0], format_), 3).several
        ), format_
    spoilt = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])[:-900]
    assert np.array_equal(decode(spoilt, 3), decode(encoded(frames[0], "GIF"), 3))
    # with a preview behind it
    photo = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:2])
    assert not pictures.look(photo, 3).several


def test_sixteen_bits_in_every_format_and_their_values() -> None:
    wide = np.array([[2, 128, 257, 1000], [32767, 32768, 65000, 65533]], np.uint16)
    pgm = b"P5 4 2 65535\n" + wide.astype(">u2").tobytes()
    jpeg_2000 = encoded(Image.fromarray(wide), "JPEG2000", irreversible=False)
    for data in (
        pgm,
        jpeg_2000,
        encoded(Image.fromarray(wide)),
        encoded(Image.fromarray(wide), "TIFF"),
    ):
        found = pictures.look(data, 1)
        assert np.array_equal(np.asarray(found.image), np.rint(wide / 257)) and found.values == (
            2,
            65533,
        )
    # which tells its range
    twelve = decode(b"P5 4 2 4095\n" + (wide >> 4).astype(">u2").tobytes(), 1)
    assert np.array_equal(twelve[0], np.rint(np.rint((wide >> 4) * (65535 / 4095)) / 257))
    assert pictures.look(encoded(noise()), 3).values is None


def png(depth: int, colour: int, row: bytes, transparent: bytes) -> bytes:
    """A PNG of one row of two pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")
        )

    header = (2).to_bytes(4, "big") + (1).to_bytes(4, "big") + bytes([depth, colour, 0, 0, 0])
    parts = (
        chunk(b"IHDR", header)
        + chunk(b"tRNS", transparent)
        + chunk(b"IDAT", zlib.compress(b"\0" + row))
    )
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def test_what_is_transparent_in_sixteen_bits_is_laid_on_white_too() -> None:
    grey = png(16, 0, b"\x10\x00\x80\x80", b"\x10\x00")
    assert (
        decode(grey, 1).tolist() == [[[255, 128]]]
        and decode(grey, 3).tolist() == [[[255, 128]]] * 3
    )
    rgb = png(16, 2, b"\x10\x00\x20\x00\x30\x00" + b"\x80\x80" * 3, b"\x10\x00\x20\x00\x30\x00")
    assert decode(rgb, 3).tolist() == [[[255, 128]]] * 3
    eight = png(8, 0, b"\x10\x80", b"\x00\x10")
    assert decode(eight, 1).tolist() == [[[255, 128]]]


def test_a_limit_of_pixels_can_be_raised_and_lowered() -> None:
    large = encoded(Image.new("1", (10_000, 9_000), 1))
    with pytest.raises(
        BadPicture, match=r"10000x9000 is taken by `execution: \{max_image_pixels: 90000000\}`"
    ):
        pictures.look(large, 1)
    assert pictures.look(large, 1, 90_000_000).image.size == (10_000, 9_000)
    with pytest.raises(BadPicture, match="more than 100 pixels"):
        pictures.look(encoded(noise(12, 9)), 3, 100)
    with pytest.raises(BadPicture, match="more than 89,478,485 pixels"):
        masks.read(bomb(), 3)
