"""Pictures as a model's own image processor hands them over, and the places they take in a prompt: no torch, no transformers.

Every step is that of transformers' processors on Pillow, in the same order and the same types, so the numbers are the same bits.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UsageError, one_line
from edgekit.runtime.decoder import decoder_info
from edgekit.spec.names import RESAMPLINGS
from edgekit.spec.records import Pictures

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST = 1 << 26
"""Pixels of a picture, as it is and after it was first resized, at most."""


def look(bundle: Bundle, text: str, images: Sequence[str | Path]) -> tuple[str, np.ndarray | None]:
    """A prompt whose places of pictures have become those of their features, and the views float32 [n, 3, H, W] that give
    them; None without pictures.

    Raises UsageError for pictures that the model does not take or that cannot be read, and where they are not as many as
    the prompt has places.
    """
    info = bundle.manifest.pictures
    if info is None:
        return text, None
    parts = text.split(info.place)
    if len(parts) - 1 != len(images):
        raise UsageError(
            f"prompt: {len(parts) - 1} places {info.place!r} for {len(images)} images; as many are needed of one as of the "
            "other (in a chat each image brings its place, in a plain text write them)"
        )
    if not images:
        return text, None
    seen = [views(path, info) for path in images]
    tokens, most = info.rows * sum(len(pixels) for pixels, _, _ in seen), decoder_info(bundle).max_length
    if tokens >= most:
        raise UsageError(
            f"prompt: {tokens} tokens of pictures; the context holds {most}, the answer included; give fewer"
        )
    texts = [info.prompt(rows, columns) for _, rows, columns in seen]
    whole = parts[0] + "".join(expanded + part for expanded, part in zip(texts, parts[1:], strict=True))
    return whole, np.concatenate([pixels for pixels, _, _ in seen])


def in_parts(messages: Sequence[Mapping[str, str]], images: int) -> list[dict[str, Any]]:
    """A conversation as templates of models that take pictures read it: so many images before its last text."""
    parts: list[dict[str, Any]] = [
        {"role": message["role"], "content": [{"type": "text", "text": message["content"]}]} for message in messages
    ]
    parts[-1]["content"][:0] = [{"type": "image"}] * images
    return parts


def views(path: str | Path, info: Pictures) -> tuple[np.ndarray, int, int]:
    """A picture's views float32 [n, 3, H, W]: its tiles row by row, then the whole; and the rows and columns of tiles.

    Raises UsageError for a file that is no picture, or one that no view can be made of.
    """
    image = opened(path)
    height, width = info.size
    rows = columns = 0
    if info.fit == "crop":
        image = _middle(_resized(image, *_by_shorter(image, info.edge, path), info), height, width)
    elif info.fit == "tiles":
        image = _resized(image, *_by_longer(image, info.edge), info)
        if info.tile:
            image = _resized(image, *_whole_tiles(image, height), info)
            rows, columns = image.height // height, image.width // width
    if rows * columns == 1:
        rows = columns = 0
    tiles = [
        image.crop((c * width, r * height, (c + 1) * width, (r + 1) * height))
        for r in range(rows)
        for c in range(columns)
    ]
    # A picture of the right size is resized all the same where the processor does so: that changes no pixel.
    whole = image if info.fit == "crop" else _resized(image, height, width, info)
    return np.stack([_normalized(view, info) for view in (*tiles, whole)]), rows, columns


def opened(path: str | Path) -> Image:
    """A picture file as RGB, turned as its camera was held, what is transparent on white. Raises UsageError."""
    from PIL import Image as pillow
    from PIL import ImageOps

    if not Path(path).is_file():
        raise UsageError(f"{path}: no such file; give a picture (.png, .jpg, ...)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large and of half damaged files, which are checked or read here
            with pillow.open(path) as file:
                _check_kind(file, path)
                image = ImageOps.exif_transpose(file)
                if "A" in image.getbands() or image.info.get("transparency") is not None:
                    clear = image.convert("RGBA")
                    image = pillow.alpha_composite(pillow.new("RGBA", clear.size, (255, 255, 255, 255)), clear)
                image = image.convert("RGB")
    except UsageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever they do for damaged files
        raise UsageError(f"{path}: not a readable picture ({one_line(error, 80)}); give a .png, .jpg, ...") from error
    if image.width * image.height < 2:
        raise UsageError(
            f"{path}: a picture of {image.width} x {image.height} pixels has nothing to see; give a larger one"
        )
    return image


def _check_kind(file: Image, path: str | Path) -> None:
    if file.format == "EPS":
        raise UsageError(f"{path}: an EPS file, a program that draws a picture; save it as .png")
    if file.width * file.height > LARGEST:
        raise UsageError(f"{path}: {file.width} x {file.height} pixels; {LARGEST:,} at most, make it smaller")
    if file.mode.startswith(("I", "F")):
        raise UsageError(f"{path}: a picture of more than 8 bits a channel; save it with 8")


def _resized(image: Image, height: int, width: int, info: Pictures) -> Image:
    return image.resize((width, height), RESAMPLINGS.index(info.resample))


def _by_shorter(image: Image, edge: int, path: str | Path) -> tuple[int, int]:
    """Height and width with the shorter side ``edge``."""
    short, long = sorted((image.width, image.height))
    larger = int(edge * long / short)
    if edge * larger > LARGEST:
        raise UsageError(f"{path}: {image.width} x {image.height} pixels are too long a strip; cut out a part of it")
    return (larger, edge) if image.width <= image.height else (edge, larger)


def _by_longer(image: Image, edge: int) -> tuple[int, int]:
    """Height and width with the longer side ``edge`` and the shorter one even."""
    ratio = image.width / image.height
    if image.width >= image.height:
        height, width = int(edge / ratio), edge
        return max(height + height % 2, 1), width
    height, width = edge, int(edge * ratio)
    return height, max(width + width % 2, 1)


def _whole_tiles(image: Image, tile: int) -> tuple[int, int]:
    """Height and width as multiples of a tile's side, the longer side rounded up first."""
    ratio = image.width / image.height
    if image.width >= image.height:
        width = math.ceil(image.width / tile) * tile
        return math.ceil(int(width / ratio) / tile) * tile, width
    height = math.ceil(image.height / tile) * tile
    return height, math.ceil(int(height * ratio) / tile) * tile


def _middle(image: Image, height: int, width: int) -> Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _normalized(image: Image, info: Pictures) -> np.ndarray:
    """float32 [3, H, W]."""
    pixels = (np.asarray(image).astype(np.float64) * info.scale).astype(np.float32)
    mean, deviation = (np.array(numbers, np.float32) for numbers in (info.mean, info.deviation))
    return np.ascontiguousarray(((pixels - mean) / deviation).transpose(2, 0, 1))
