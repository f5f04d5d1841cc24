"""Perplexity of a bundle over a text of the user's."""

from __future__ import annotations

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
from edgekit.strict import read_text

EXPECTED = "--text takes a plain text file"


def text_perplexity(
    bundle: Bundle, file: Path, threads: int, original: Original | None, progress: Progress
) -> TextPerplexity:
    """Perplexity over ``file`` (UTF-8), of the original too where it is given.

    Raises UnsupportedError for a bundle that is no language model, UsageError for a text that cannot be read or is too
    short.
    """
    if bundle.manifest.decoder is None or bundle.manifest.decoder.encoder is not None:
        raise UnsupportedError(f"{bundle.directory}: perplexity is for language models, not {bundle.manifest.task}")
    ids = Tokenizer(bundle).encode(read_text(file, UsageError, EXPECTED))[:TEXT_TOKENS]
    if len(ids) < 2:
        raise UsageError(f"{file}: {len(ids)} tokens; perplexity needs a text of some length")
    size = min(WINDOW, bundle.manifest.decoder.max_length)
    decoder = Decoder(bundle, threads, max_length=size)
    ours, theirs = [], []
    for start in range(0, len(ids) - 1, size):  # pieces of at least two tokens: the first is never predicted
        progress(f"perplexity of {file.name}", start / len(ids))
        window = np.array([ids[start : start + size]], np.int64)
        ours.append(replay_text(decoder, window, steps=0)["nll"])
        if original is not None:
            theirs.append(original.nll(window))
    reference = perplexity(np.concatenate(theirs)) if theirs else None
    nats = np.concatenate(ours)
    return TextPerplexity(str(file), len(nats), size, perplexity(nats), reference)
