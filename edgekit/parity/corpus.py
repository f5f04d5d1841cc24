"""Perplexity of a bundle over a text of the user's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError, UsageError
from edgekit.metrics import perplexity
from edgekit.parity.original import Original
from edgekit.parity.report import TextPerplexity
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.replay import replay_text
from edgekit.runtime.tokenizer import Tokenizer
from edgekit.spec.names import TEXT_TOKENS, WINDOW
from edgekit.spec.progress import Progress


def text_perplexity(
    bundle: Bundle, file: Path, threads: int, original: Original | None, progress: Progress
) -> TextPerplexity:
    """Perplexity over ``file`` (UTF-8), of the original too where it is given.

    Raises UnsupportedError for a bundle that is no language model, UsageError for a text that cannot be read or is too
    short.
    """
    if bundle.manifest.decoder is None:
        raise UnsupportedError(f"{bundle.directory}: perplexity is for language models, not {bundle.manifest.task}")
    ids = Tokenizer(bundle).encode(read_text(file))[:TEXT_TOKENS]
    if len(ids) < 2:
        raise UsageError(f"{file}: {len(ids)} tokens; perplexity needs a text of some length")
    decoder = Decoder(bundle, threads, max_length=min(WINDOW, bundle.manifest.decoder.max_length))
    windows = list(_windows(ids, decoder.max_length))
    ours, theirs = [], []
    for index, window in enumerate(windows):
        progress(f"perplexity of {file.name}", index / len(windows))
        ours.append(replay_text(decoder, window, steps=0)["nll"])
        if original is not None:
            theirs.append(original.nll(window))
    return TextPerplexity(
        file=str(file),
        tokens=sum(len(nll) for nll in ours),
        window=decoder.max_length,
        bundle=perplexity(np.concatenate(ours)),
        original=perplexity(np.concatenate(theirs)) if theirs else None,
    )


def _windows(ids: list[int], size: int) -> Iterator[np.ndarray]:
    """Pieces int64 [1, <= size] of at least two tokens: the first is never predicted."""
    for start in range(0, len(ids) - 1, size):
        yield np.array([ids[start : start + size]], np.int64)


def read_text(file: Path) -> str:
    """A UTF-8 text. Raises UsageError."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{file}: not a readable UTF-8 text ({type(error).__name__}); --text takes a plain text file"
        ) from error
