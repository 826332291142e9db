"""Masks of pictures, one class a pixel: from palette indices or from the colours of Pascal VOC.
Without torch.
"""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from trainer.prepared.pictures import FORMATS, MOST_PIXELS, BadPicture, pixels, refuse_bomb

VOID = 255  # a pixel that has no class: no loss, no place in any figure


def colour_map() -> np.ndarray:
    """uint8 [256, 3]: Pascal VOC's colours of the indices (the development kit's VOClabelcolormap):
    bits 0, 3, 6, ... of an index are the highest of red, bits 1, 4, 7, ... of green, bits 2, 5, ...
    of blue.
    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * place + channel)) & 1) << (7 - place)).astype(
                np.uint8
            )
    return colours


@functools.cache
def of_colour() -> np.ndarray:
    """int16 [2**24]: the index of each colour by 65536 red + 256 green + blue; -1 of those that VOC
    has not.
    """
    found = np.full(1 << 24, -1, np.int16)
    found[colour_map().astype(np.int64) @ np.array([65536, 256, 1])] = np.arange(256)
    return found


def read(data: bytes, classes: int, most_pixels: int = MOST_PIXELS) -> np.ndarray:
    """A mask's file -> uint8 [H, W], the number of each pixel's class, or VOID. Raises
    BadPicture.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        # a JPEG changes the numbers, others Pillow may turn into colours
        if image.format != "PNG":
            raise BadPicture(
                f"the mask is a file of the format {image.format}: its classes are certain in a PNG"
                " alone"
            )
        refuse_bomb(image, most_pixels)
        image.load()
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture("the mask is no image by its content") from None
    except Exception as error:  # Pillow's decoders fail in many ways
        raise BadPicture(f"no mask that can be read: {type(error).__name__}: {error}") from error
    image = _opaque(image)
    if image.mode in ("P", "L", "1"):  # np.asarray gives a palette's indices
        mask = np.asarray(image).astype(np.uint8)
    elif image.mode == "RGB":
        indices = of_colour()[np.asarray(image).astype(np.int64) @ np.array([65536, 256, 1])]
        if (indices < 0).any():
            row, column = np.argwhere(indices < 0)[0].tolist()
            colour = np.asarray(image)[row, column].tolist()
            raise BadPicture(
                f"colour {colour} at row {row}, column {column} is none of Pascal VOC's"
            )
        mask = indices.astype(np.uint8)
    else:
        raise BadPicture(f"a mask of mode {image.mode}; expected palette indices or RGB")
    if (strange := mask[(mask >= classes) & (mask != VOID)]).size:
        raise BadPicture(
            f"class {int(strange.max())} in a mask; known are 0 to {classes - 1}, and {VOID} for"
            " none"
        )
    return mask


def _opaque(image: Image.Image) -> Image.Image:
    """Without an alpha channel that says nothing. Raises BadPicture where it does."""
    if image.mode not in ("RGBA", "LA"):
        return image
    if image.getchannel("A").getextrema() != (255, 255):
        raise BadPicture(
            "a mask with transparent pixels, whose class is not known: store it without an alpha"
            " channel"
        )
    return image.convert(image.mode.removesuffix("A"))


def encoded(mask: np.ndarray) -> bytes:
    """uint8 [H, W] -> a PNG file: the same bytes whatever file the mask came from."""
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")
    return file.getvalue()


class Crop(NamedTuple):
    """How a picture of any size becomes uint8 [channels, height, width]: its middle is cut out.
    most_pixels: of a file that is decoded.
    """

    channels: int
    height: int
    width: int
    most_pixels: int = MOST_PIXELS

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.height, self.width

    def fits(self, image: Image.Image) -> bool:
        """Whether the picture is as large as the crop, at least."""
        return image.height >= self.height and image.width >= self.width

    def middle(self, height: int, width: int) -> tuple[int, int]:
        """(top, left) of the crop in the middle of a picture."""
        return (height - self.height) // 2, (width - self.width) // 2

    def cut(
        self, image: Image.Image, mask: np.ndarray, top: int, left: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same piece of a picture and its mask: uint8 [channels, height, width] and [height,
        width].
        """
        bottom, right = top + self.height, left + self.width
        return pixels(image.crop((left, top, right, bottom))), mask[top:bottom, left:right]

    def __call__(self, image: Image.Image) -> np.ndarray:
        top, left = self.middle(image.height, image.width)
        return pixels(image.crop((left, top, left + self.width, top + self.height)))


class EncodedMasks:
    """The masks of encoded pictures as PNG files' bytes, read like a mapped array uint8 [N, height,
    width] of their middles.
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, folder: Path, split: str, crop: Crop) -> None:
        self.crop = crop
        self.data = np.memmap(folder / f"{split}-masks.bin", np.uint8, mode="r")
        self.offsets = np.load(folder / f"{split}-mask-offsets.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def mask(self, number: int) -> np.ndarray:
        """Mask `number` at its own size, uint8 [H, W]."""
        begin, end = self.offsets[number : number + 2]
        return np.asarray(Image.open(io.BytesIO(self.data[begin:end].tobytes()), formats=("PNG",)))

    def __getitem__(self, where: slice | np.ndarray) -> np.ndarray:
        numbers = range(len(self))[where] if isinstance(where, slice) else where
        return np.stack([self._middle(self.mask(int(number))) for number in numbers])

    def _middle(self, mask: np.ndarray) -> np.ndarray:
        top, left = self.crop.middle(*mask.shape)
        return mask[top : top + self.crop.height, left : left + self.crop.width]
