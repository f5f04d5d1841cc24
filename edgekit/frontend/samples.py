"""Real input for golden vectors and calibration: the user's own, or what ships with edgekit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import SourceError

DATA = Path(__file__).parent / "data"
TEXT_TOKENS = 512
SENTENCES = 128
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Inputs = dict[str, np.ndarray]


def prose(samples: Path | None = None) -> str:
    """The user's text file, or the shipped prose. Raises SourceError when it cannot be read as text."""
    path = samples if samples is not None else DATA / "prose.txt"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(
            f"{path}: not a readable UTF-8 text ({type(error).__name__}); --samples takes a .txt file for language models"
        ) from error
    if not text.strip():
        raise SourceError(f"{path}: is empty; --samples takes a text of a few thousand characters")
    return text


def text_ids(assets: Sequence[Path], samples: Path | None, limit: int, vocabulary: int) -> tuple[np.ndarray, str]:
    """Token ids int64 [1, T] of real prose for a language model, T <= 512, and their kind.

    Without a tokenizer there is no real text: the ids are random and the kind is "random", which reports say.
    """
    length = min(TEXT_TOKENS, limit)
    tokenizer = next((p for p in assets if p.name == "tokenizer.json"), None)
    if tokenizer is None:
        return np.random.default_rng(0).integers(0, vocabulary, (1, length)), "random"
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer)).encode(prose(samples)).ids[:length]
    if len(ids) < 2:
        raise SourceError(f"{samples}: {len(ids)} tokens; --samples takes a text of a few thousand characters")
    return np.array([ids], np.int64), "text"


def sentence_batches(assets: Sequence[Path], samples: Path | None, names: Sequence[str]) -> list[Inputs]:
    """Batches of 8 sentences for a text encoder, padded on the right: input_ids, attention_mask and what else it takes.

    Raises SourceError when the model has no tokenizer.json.
    """
    path = next((p for p in assets if p.name == "tokenizer.json"), None)
    if path is None:
        raise SourceError(
            "the model has no tokenizer.json, so text cannot be turned into its input; give --samples inputs.npz"
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    tokenizer.enable_truncation(64)
    sentences = [s.strip() + "." for s in prose(samples).replace("\n", " ").split(". ") if len(s) > 20][:SENTENCES]
    return [
        _padded([tokenizer.encode(s).ids for s in sentences[i : i + 8]], names) for i in range(0, len(sentences), 8)
    ]


def _padded(rows: Sequence[Sequence[int]], names: Sequence[str]) -> Inputs:
    length = max(len(r) for r in rows)
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)], mask[index, : len(row)] = row, 1
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: every[name] for name in names if name in every}


def photos(samples: Path | None, size: tuple[int, int], directory: Path | None) -> np.ndarray:
    """Photos as float32 [n, 3, H, W], resized, cropped in the middle and normalized as the model expects.

    ``directory`` may hold preprocessor_config.json; without it the ImageNet mean and deviation are used.
    """
    from PIL import Image

    folder = samples or DATA / "photos"
    paths = [folder] if folder.is_file() else sorted(p for p in folder.glob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SourceError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}); --samples takes a directory of photos")
    mean, deviation = _normalization(directory)
    height, width = size
    images = []
    for path in paths:
        try:
            image = Image.open(path).convert("RGB")
        except OSError as error:
            raise SourceError(f"{path}: not a readable image") from error
        scale = max(height / image.height, width / image.width) * 256 / 224
        image = image.resize(
            (max(width, round(image.width * scale)), max(height, round(image.height * scale))),
            Image.Resampling.BILINEAR,
        )
        left, top = (image.width - width) // 2, (image.height - height) // 2
        pixels = np.asarray(image.crop((left, top, left + width, top + height)), np.float32) / 255
        images.append(((pixels - mean) / deviation).transpose(2, 0, 1))
    return np.stack(images).astype(np.float32)


def _normalization(directory: Path | None) -> tuple[np.ndarray, np.ndarray]:
    path = directory / "preprocessor_config.json" if directory is not None else None
    settings: dict[str, Any] = (
        json.loads(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else {}
    )
    mean, deviation = settings.get("image_mean", IMAGENET_MEAN), settings.get("image_std", IMAGENET_STD)
    return np.array(mean, np.float32), np.array(deviation, np.float32)


def arrays(path: Path) -> list[Inputs]:
    """An .npz of named inputs, the first axis of each being the sample; one sample a batch of its own."""
    try:
        with np.load(path, allow_pickle=False) as file:
            named = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: not a readable .npz ({str(error)[:80]})") from error
    counts = {len(a) for a in named.values()}
    if len(counts) != 1:
        raise SourceError(f"{path}: arrays have different first axes {sorted(counts)}; each is a batch of samples")
    return [{name: array[i : i + 1] for name, array in named.items()} for i in range(counts.pop())]
