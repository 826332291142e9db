"""One encoded picture -> uint8 pixels, as people see it: what prepare and the loader's workers
decode by. Without torch.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from importlib.util import find_spec
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.config.data import ImageFolderData

# An image is known by its content, whatever its name says; by its ending, whether a folder's file
# is taken for one. Not all that Pillow reads: it would start Ghostscript for EPS, and formats
# without a signature could be anything (tests/test_pictures.py).
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "AVIF": (".avif", ".avifs"),
    "DIB": (".dib",),  # a BMP without its first header
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
}
EXTENSIONS = tuple(ending for endings in ENDINGS.values() for ending in endings)
# which Pillow has from 11.3 on
FORMATS = tuple(name for name in ENDINGS if name != "AVIF" or find_spec("PIL.AvifImagePlugin"))
MOST_PIXELS = 89_478_485  # as Pillow's own limit, a quarter of a gigabyte of RGB
FULL = 65535  # the largest value of 16 bits

# Pillow's limit is one for the whole process; `read` holds each image against the run's own, before
# it is decoded.
Image.MAX_IMAGE_PIXELS = None
# they are of tags that could not be read, which do not change the pixels
warnings.filterwarnings("ignore", module=r"PIL\.")


class BadPicture(Exception):
    """The bytes are no picture that can be decoded; the message is the reason, in a few words."""


class Picture(NamedTuple):
    """An image of mode L or RGB, and what its pixels no longer show. several: its file holds more
    frames than this first one.

    values: the least and the largest of an image of 16 bits, as stored; None of one of 8.
    """

    image: Image.Image
    several: bool = False
    values: tuple[int, int] | None = None


class Fit(NamedTuple):
    """How a picture of any size becomes uint8 [channels, size, size]: as torchvision's
    Resize(resize) and CenterCrop(size) do.

    keep_aspect: the shorter side becomes `resize`; else both sides do. most_pixels: of a file that
    is decoded.
    """

    channels: int
    size: int
    resize: int
    keep_aspect: bool
    most_pixels: int = MOST_PIXELS

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    @classmethod
    def of(cls, config: ImageFolderData, most_pixels: int = MOST_PIXELS) -> Self:
        return cls(
            config.channels,
            config.size,
            config.resize or config.size,
            config.keep_aspect,
            most_pixels,
        )

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [channels, size, size].

        Raises BadPicture where the picture is so narrow that its resized form would be huge.
        """
        width, height = image.size
        if not self.keep_aspect:
            target = (self.resize, self.resize)
        elif width <= height:
            target = (self.resize, int(self.resize * height / width))
        else:
            target = (int(self.resize * width / height), self.resize)
        if target[0] * target[1] > MOST_PIXELS:
            raise BadPicture(
                f"{width}x{height} is too narrow to be resized to {target[0]}x{target[1]}"
            )
        if target != image.size:
            # antialiased: Pillow's always is
            image = image.resize(target, Image.Resampling.BILINEAR)
        left, top = (round((side - self.size) / 2) for side in target)
        return pixels(image.crop((left, top, left + self.size, top + self.size)))


def decode(data: bytes, channels: int) -> np.ndarray:
    """A picture's bytes -> uint8 [channels, H, W], grey (ITU-R 601-2) or RGB. Raises BadPicture."""
    return pixels(read(data, channels))


def read(data: bytes, channels: int, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """The image of `look`."""
    return look(data, channels, most_pixels).image


def look(data: bytes, channels: int, most_pixels: int = MOST_PIXELS) -> Picture:
    """A picture's bytes -> an image of mode L or RGB, turned as its EXIF says. Raises BadPicture.

    Transparent pixels are laid on white. Of 16 bits a channel the upper eight count. Of several
    frames it is the first. CMYK becomes RGB by Pillow's formula; colour profiles are not applied.
    """
    if not data:
        raise BadPicture("an empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        refuse_bomb(image, most_pixels)
        # of which Pillow keeps the upper eight bits
        if image.format == "PNG" and "RGB;16B" in str(image.tile):
            _keep_upper_bits(image.info)
        image.load()
        # spoilt tags beside good pixels, as some of ImageNet's have
        with contextlib.suppress(Exception):
            ImageOps.exif_transpose(image, in_place=True)
        values = None
        if has_16_bits(image):
            image, values = _of_16_bits(image)
        return Picture(
            _to_mode(image, "L" if channels == 1 else "RGB"), _has_more_frames(data), values
        )
    except (BadPicture, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadPicture(f"no picture by its content (known: {', '.join(FORMATS)})") from None
    # Pillow's decoders fail in many ways: OSError, SyntaxError, struct.error, zlib.error, ...
    except Exception as error:
        raise BadPicture(
            str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        ) from error


def refuse_bomb(image: Image.Image, most_pixels: int) -> None:
    """Raises BadPicture where an image that is not decoded yet has more pixels: a file of a few
    bytes can unfold to gigabytes.
    """
    if image.width * image.height > most_pixels:
        raise BadPicture(
            f"more than {most_pixels:,} pixels: a decompression bomb? {image.width}x{image.height}"
            f" is taken by `execution: {{max_image_pixels: {image.width * image.height}}}`"
        )


def has_16_bits(image: Image.Image) -> bool:
    """Whether a grey image has 16 bits a pixel, which Pillow holds in 16 or in 32, by its version
    and by the file's format.
    """
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _of_16_bits(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
    """(the image with 8 bits, the least and the largest value that it had).

    A value that is transparent becomes white.
    """
    wide = np.asarray(image).astype(np.uint32)
    grey = ((wide * 255 + FULL // 2) // FULL).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[wide == transparent] = 255
    return Image.fromarray(grey), (int(wide.min()), int(wide.max()))


def _keep_upper_bits(info: dict[Any, Any]) -> None:
    """Makes of the colour that is transparent what Pillow makes of the pixels."""
    if isinstance(info.get("transparency"), tuple):
        info["transparency"] = tuple(value >> 8 for value in info["transparency"])


def _has_more_frames(data: bytes) -> bool:
    """Whether a file is an animation or has further pages.

    A photo with its small preview (MPO) is one image.
    """
    with contextlib.suppress(Exception):  # spoilt further frames beside a good first one
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    return False


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode in ("I", "F"):
        raise BadPicture("pixels of 32 bits, whose range is not known: store it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == mode else image.convert(mode)


def pixels(image: Image.Image) -> np.ndarray:
    """An image of mode L or RGB -> uint8 [C, H, W]."""
    array = np.asarray(image)
    return np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


def shown(name: str) -> str:
    """A file's name as it can stand in a line: quoted and escaped where it holds newlines or bytes
    that are no text.
    """
    return name if name.isprintable() else repr(name)
