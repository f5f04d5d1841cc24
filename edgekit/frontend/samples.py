"""What `--samples` names, read: a text, pictures, arrays; and what ships with edgekit in their place."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edgekit.errors import SourceError, one_line
from edgekit.frontend.source import ModelInput
from edgekit.strict import read_json, read_text

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DATA = Path(__file__).parent / "data"
SENTENCES = 128
MODULE = 20_000
"""Bytes of a module that is still short."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COLOURS = {1: "L", 3: "RGB"}
"""How pictures are read, by the channels that a model takes."""

Batch = dict[str, np.ndarray]
Piece = TypeVar("Piece")


def prose(samples: Path | None) -> str:
    """The user's text file, or the shipped prose. Raises SourceError when it cannot be read as text."""
    path = samples if samples is not None else DATA / "prose.txt"
    text = read_text(path, SourceError, "give a .txt file")
    if not text.strip():
        raise SourceError(f"{path}: is empty; --samples takes a text of a few thousand characters")
    return text


def tokens(tokenizer: Path, samples: Path | None, count: int) -> np.ndarray:
    """The first tokens of a text for a language model: ids int64 [1, T], 2 <= T <= ``count``."""
    ids = _reader(tokenizer).encode(prose(samples)).ids[:count]
    if len(ids) < 2:
        raise SourceError(f"{samples}: {len(ids)} tokens; --samples takes a text of a few thousand characters")
    return np.array([ids], np.int64)


def sentences(tokenizer: Path, samples: Path | None, most: int) -> list[list[int]]:
    """Token ids of up to 128 sentences of a text, each of at most ``most`` tokens."""
    texts = _sentences(prose(samples))[:SENTENCES]
    if not texts:
        raise SourceError(
            f"{samples}: no sentence of more than 20 characters; --samples takes a text of a page or more"
        )
    reader = _reader(tokenizer)
    reader.enable_truncation(most)
    return [reader.encode(text).ids for text in texts]


def calibration_windows(tokenizer: Path, samples: Path | None, count: int, length: int, skip: int) -> list[Batch]:
    """Up to ``count`` windows of ``length`` tokens, input_ids int64 [1, length], drawn at random with a fixed seed.

    Out of the user's text beyond its first ``skip`` tokens, by which the model is judged; what is missing then, out of
    the calibration text that ships with edgekit. Each begins as the tokenizer begins a text.
    """
    reader = _reader(tokenizer)
    probe = reader.encode("a")
    start = probe.ids[: probe.special_tokens_mask.index(0)]
    size, windows = length - len(start), list[tuple[int, ...]]()
    for text, first in _calibration_texts(samples, skip):
        ids = reader.encode(text, add_special_tokens=False).ids[first:]
        pieces = [tuple(ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)]
        windows = list(dict.fromkeys([*windows, *_drawn(pieces, count)]))
    return [{"input_ids": np.array([[*start, *window]], np.int64)} for window in windows[:count]]


def calibration_sentences(tokenizer: Path, samples: Path | None, count: int, most: int) -> list[list[int]]:
    """The same for an encoder: token ids of up to ``count`` sentences, of the user's text beyond those of :func:`sentences`."""
    chosen = list[str]()
    for text, first in _calibration_texts(samples, SENTENCES):
        chosen = list(dict.fromkeys([*chosen, *_drawn(_sentences(text)[first:], count)]))
    reader = _reader(tokenizer)
    reader.enable_truncation(most)
    return [reader.encode(text).ids for text in chosen[:count]]


def _calibration_texts(samples: Path | None, skip: int) -> Iterator[tuple[str, int]]:
    """The user's text and what of its beginning is left out, then the shipped one, which judges nothing."""
    if samples is not None:
        yield prose(samples), skip
    yield prose(DATA / "calibration.txt"), 0


def general_texts(besides: str) -> list[str]:
    """English to fill a calibration with where the user's text (``besides``, a path) is short: the shipped texts, and what
    every Python has with it (PSF licence), its documentation and the shorter modules of its library."""
    from pydoc_data.topics import topics

    library = Path(sysconfig.get_path("stdlib"))
    modules = [file for file in sorted(library.glob("*.py")) if file.stat().st_size < MODULE]
    shipped = [DATA / name for name in ("calibration.txt", "plays.txt")]
    texts = [file.read_text("utf-8") for file in shipped if file != Path(besides)]
    return [*texts, "\n".join(topics.values()), "\n".join(file.read_text("utf-8") for file in modules)]


def _drawn(pieces: Sequence[Piece], count: int) -> list[Piece]:
    order = np.random.default_rng(0).permutation(len(pieces))[:count]
    return [pieces[i] for i in order]


def _sentences(text: str) -> list[str]:
    return [s.strip() + "." for s in text.replace("\n", " ").split(". ") if len(s) > 20]


def _reader(tokenizer: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    reader = Tokenizer.from_file(str(tokenizer))
    reader.no_padding()
    reader.no_truncation()  # some files carry that of their training
    return reader


def padded(rows: Sequence[Sequence[int]], length: int) -> Batch:
    """Sentences as a text encoder takes them, filled up on the right: int64 [n, length] each."""
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def picture_files(samples: Path, most: int) -> list[Path]:
    """One picture, or up to ``most`` of a directory and its folders, evenly spaced in the order of their names."""
    if samples.is_file():
        return [samples]
    paths = sorted(p for p in samples.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SourceError(f"{samples}: no pictures ({', '.join(IMAGE_SUFFIXES)}) in this directory")
    return [paths[i * len(paths) // most] for i in range(most)] if len(paths) > most else paths


def pictures(paths: Sequence[Path], channels: int, size: tuple[int, int], directory: Path | None) -> np.ndarray:
    """Pictures as float32 [n, channels, H, W]: resized and cropped in the middle where they have another size.

    RGB is normalized as preprocessor_config.json in ``directory`` says, else by ImageNet's mean and deviation; gray
    likewise, else it is 0 to 1. Raises SourceError for a file that is no picture of 8 bits.
    """
    mean, deviation = _normalization(directory, channels)
    images = [(_pixels(path, COLOURS[channels], size) - mean) / deviation for path in paths]
    return np.stack([image.transpose(2, 0, 1) for image in images]).astype(np.float32)


def _pixels(path: Path, colours: str, size: tuple[int, int]) -> np.ndarray:
    """float32 [H, W, channels], 0 to 1."""
    from PIL import Image

    height, width = size
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(("I", "F")):
                raise SourceError(f"{path}: a picture of more than 8 bits a channel; save it with 8, or give an .npz")
            image = opened.convert(colours)
    except (OSError, Image.DecompressionBombError) as error:
        raise SourceError(f"{path}: not a readable picture ({str(error)[:80]})") from error
    if (image.height, image.width) != size:
        scale = max(height / image.height, width / image.width) * 256 / 224
        larger = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        image = image.resize(larger, Image.Resampling.BILINEAR)
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return np.asarray(image, np.float32).reshape(height, width, len(colours)) / 255


def _normalization(directory: Path | None, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the channels, float32."""
    path = directory / "preprocessor_config.json" if directory is not None else None
    settings = read_json(path, SourceError, "fetch the file again") if path is not None and path.is_file() else {}
    given = settings.get("image_mean"), settings.get("image_std")
    unknown = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.0,), (1.0,))
    try:
        mean, deviation = (np.array(u if g is None else g, np.float32) for g, u in zip(given, unknown, strict=True))
    except (TypeError, ValueError) as error:
        raise SourceError(f"{path}: image_mean and image_std are {given}; expected a number a channel") from error
    if channels == 1:
        return mean.mean(), deviation.mean()
    return mean, deviation


def misfit(given: Batch, declared: Sequence[ModelInput]) -> str:
    """Why arrays, whose first axis are samples, are not what a model takes; nothing when they are."""
    names = [one.name for one in declared]
    for name in names:
        if name not in given:
            return f"has no array '{name}', only {', '.join(given) or 'nothing'}"
    for name in given:
        if name not in names:
            return f"array '{name}' is no input of the model"
    for one in declared:
        array = given[one.name]
        if one.dims is None:
            fits = array.ndim > 0
        else:
            fits = array.dtype.name == one.dtype and array.ndim == len(one.dims)
            fits = fits and all(d in (None, n) for d, n in zip(one.dims[1:], array.shape[1:], strict=True))
        if not fits:
            return f"array '{one.name}' is {array.dtype.name} {list(array.shape)}"
    return ""


def arrays(path: Path) -> Batch:
    """An .npz by name. Raises SourceError when it cannot be read without unpickling."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, zlib and numpy raise their own kinds for damaged files
        raise SourceError(f"{path}: not a readable .npz ({one_line(error, 80)})") from error
