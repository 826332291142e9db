"""One encoded picture -> uint8 pixels, as people see it: what prepare and the loader's workers decode by. Without torch."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import NamedTuple, Self

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.config.data import ImageFolderData

# torchvision.datasets.folder.IMG_EXTENSIONS, in lower case
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
# Known by their content, whatever the name says. Not all that Pillow can: it would start Ghostscript for EPS.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485

# Pillow only warns where a picture of a few bytes unfolds to a quarter of a gigabyte; its other warnings are of tags that it
# could not read, which do not change the pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.simplefilter("error", Image.DecompressionBombWarning)


class BadPicture(Exception):
    """The bytes are no picture that can be decoded; the message is the reason, in a few words."""


class Fit(NamedTuple):
    """How a picture of any size becomes uint8 [channels, size, size]: as torchvision's Resize(resize) and CenterCrop(size) do.

    keep_aspect: the shorter side becomes `resize`; else both sides do.
    """

    channels: int
    size: int
    resize: int
    keep_aspect: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size

    @classmethod
    def of(cls, config: ImageFolderData) -> Self:
        return cls(config.channels, config.size, config.resize or config.size, config.keep_aspect)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """uint8 [channels, size, size]. Raises BadPicture where the picture is so narrow that its resized form would be huge."""
        width, height = image.size
        if not self.keep_aspect:
            target = (self.resize, self.resize)
        elif width <= height:
            target = (self.resize, int(self.resize * height / width))
        else:
            target = (int(self.resize * width / height), self.resize)
        if target[0] * target[1] > MOST_PIXELS:
            raise BadPicture(f"{width}x{height} is too narrow to be resized to {target[0]}x{target[1]}")
        if target != image.size:
            image = image.resize(target, Image.Resampling.BILINEAR)  # antialiased: Pillow's always is
        left, top = (round((side - self.size) / 2) for side in target)
        return pixels(image.crop((left, top, left + self.size, top + self.size)))


def decode(data: bytes, channels: int) -> np.ndarray:
    """A picture's bytes -> uint8 [channels, H, W], grey (ITU-R 601-2) or RGB. Raises BadPicture."""
    return pixels(read(data, channels))


def read(data: bytes, channels: int) -> Image.Image:
    """A picture's bytes -> an image of mode L or RGB, turned as its EXIF says. Raises BadPicture.

    Transparent pixels are laid on white. Of 16 bits a channel the upper eight count. Of several frames it is the first.
    CMYK becomes RGB by Pillow's formula; colour profiles are not applied.
    """
    if not data:
        raise BadPicture("an empty file")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        image.load()
        with contextlib.suppress(Exception):  # spoilt tags beside good pixels, as some of ImageNet's have
            ImageOps.exif_transpose(image, in_place=True)
        return _to_mode(image, "L" if channels == 1 else "RGB")
    except (BadPicture, MemoryError):
        raise
    except UnidentifiedImageError:
        raise BadPicture(f"no picture by its content (known: {', '.join(FORMATS)})") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadPicture(f"more than {MOST_PIXELS:,} pixels: a decompression bomb?") from None
    except Exception as error:  # Pillow's decoders fail in many ways: OSError, SyntaxError, struct.error, zlib.error, ...
        raise BadPicture(str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}") from error


def _to_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # 16 bits a pixel, by Pillow's version
        wide = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode in ("I", "F"):
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
    """A file's name as it can stand in a line: quoted and escaped where it holds newlines or bytes that are no text."""
    return name if name.isprintable() else repr(name)
