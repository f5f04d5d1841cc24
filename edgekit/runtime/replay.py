"""Runs a bundle on its own golden inputs, the way a device would."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np

from edgekit.metrics import Arrays, summarize
from edgekit.runtime.decoder import Decoder
from edgekit.spec.names import BEFORE, ENCODER, REPLAY_PIECE

NOTHING: Arrays = {}


def slots(vector: Mapping[str, np.ndarray]) -> int:
    """Tokens of context that a decoder's golden vector takes."""
    return sum(vector[name].shape[1] for name in (BEFORE, "input.input_ids") if name in vector)


def replay(decoder: Decoder, vector: Mapping[str, np.ndarray], steps: int) -> dict[str, np.ndarray]:
    """What a decoder answers to a golden vector, its source encoded or its picture seen first, as :func:`replay_text`."""
    source = for_encoder(vector)
    if BEFORE in vector:
        decoder.reset()
        decoder.run(vector[BEFORE], features=decoder.see(source["pixel_values"]))
    elif source:
        decoder.encode(source)
    return replay_text(decoder, vector["input.input_ids"], steps, fresh=BEFORE not in vector)


def replay_text(
    decoder: Decoder, ids: np.ndarray, steps: int, at: Arrays = NOTHING, fresh: bool = True
) -> dict[str, np.ndarray]:
    """Feeds ``ids`` int64 [1, T]: prefill of T - ``steps`` in chunks, then one token at a time through the cache.

    Unless ``fresh``, they go on what the cache holds. ``at`` names tokens [T, n] whose logits are wanted too. Returns what :func:`edgekit.metrics.summarize` does for the
    whole text, and ``logits`` float32 [steps + 1, V] of the last positions.
    """
    if fresh:
        decoder.reset()
    length = ids.shape[1]
    first = max(1, length - steps)
    bounds = [*range(0, first, REPLAY_PIECE), *range(first, length + 1)]
    parts: list[dict[str, np.ndarray]] = []
    last: list[np.ndarray] = []
    for start, stop in itertools.pairwise(bounds):
        logits = decoder.run(ids[:, start:stop], keep=0)[0]
        wanted = {name: tokens[start:stop] for name, tokens in at.items()}
        parts.append(summarize(logits, ids[0, start + 1 : stop + 1], wanted))
        last = [*last, *logits[-(steps + 1) :].copy()][-(steps + 1) :]
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return {**joined, "logits": np.stack(last)}


def feeds(vector: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A golden vector's inputs by graph input name."""
    return {name.removeprefix("input."): array for name, array in vector.items() if name.startswith("input.")}


def for_encoder(vector: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a golden vector holds for an encoder, by its input's name; nothing where there is none."""
    before = f"{ENCODER}."
    return {name.removeprefix(before): array for name, array in vector.items() if name.startswith(before)}
