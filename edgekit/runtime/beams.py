"""Beam search: the likeliest answer as a whole among those that begin with likely words, for models with an encoder.

As transformers' ``GenerationMixin._beam_search`` with its defaults for one source, token for token.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import UsageError
from edgekit.runtime.decoder import Decoder

NONE = np.float32(-1e9)
MOST = 32


@dataclass(frozen=True)
class Beams:
    """``count`` answers are kept at a time; an answer's score is its log-probability over its length ** ``length_penalty``.

    ``early_stopping``: as soon as so many are finished, and not when no running one can become better (as long as it is now).
    """

    count: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST:
            raise UsageError(
                f"beams: {self.count} is outside 1 to {MOST}; 1 takes the likeliest token each time, 4 is usual"
            )


def search(
    decoder: Decoder, start: Sequence[int], beams: Beams, most: int, never: Sequence[int], never_first: Sequence[int]
) -> list[int]:
    """The best answer of ``most`` tokens at most, with its end-of-text token where it has one.

    ``decoder`` holds ``beams.count`` copies of the source, and of ``start`` all that it has been fed; ``never`` and
    ``never_first`` are tokens that are not chosen.
    """
    count, ends = beams.count, decoder.info.eos_token_ids
    fed = np.tile(np.array([start[decoder.length :]], np.int64), (count, 1))
    logits = decoder.run(fed)[:, -1]
    running = [list[int]() for _ in range(count)]
    scores: np.ndarray = np.full(count, NONE, np.float32)
    scores[0] = 0  # all begin alike: only one of them may go on
    finished = [(NONE, list[int](), False)] * count
    kept = max(2, 1 + len(ends)) * count  # so many that enough go on where the best ones end
    for length in range(1, most + 1):
        chances = _log_softmax(logits)
        chances[:, [*never, *(never_first if length == 1 else ())]] = -np.inf
        flat = (chances + scores[:, None]).ravel()
        best = np.argsort(-flat, kind="stable")[:kept]
        rows, tokens = best // logits.shape[1], best % logits.shape[1]
        made = [[*running[row], int(token)] for row, token in zip(rows, tokens, strict=True)]
        ended = _are(tokens, ends) | (length == most)
        finished = _merged(finished, made, flat[best], ended, beams, length)
        going = flat[best] + ended * NONE
        chosen = np.argsort(-going, kind="stable")[:count]
        scores, running = going[chosen], [made[index] for index in chosen]
        if ended.all() or _decided(finished, scores[0], beams, length):
            break
        decoder.reorder(rows[chosen])
        logits = decoder.run(tokens[chosen][:, None])[:, -1]
    return finished[0][1] if finished[0][2] else running[0]


Finished = list[tuple[np.float32, list[int], bool]]
"""Score, tokens, and whether it is one, the best first."""


def _merged(
    finished: Finished, made: list[list[int]], chances: np.ndarray, ended: np.ndarray, beams: Beams, length: int
) -> Finished:
    """The best of the finished answers and of those that end now; only the ``beams.count`` likeliest may."""
    if beams.early_stopping and all(one for _, _, one in finished):
        return finished
    count = len(finished)
    values = (chances / np.float32(length**beams.length_penalty)).astype(np.float32)
    new = [(value, tokens, True) for value, tokens, end in zip(values[:count], made, ended, strict=False) if end]
    return sorted([*finished, *new], key=lambda one: -one[0])[:count]


def _decided(finished: Finished, running: np.float32, beams: Beams, length: int) -> bool:
    """Whether no running answer can become better than the worst of the finished ones."""
    if not all(one for _, _, one in finished):
        return False
    return beams.early_stopping or not running / np.float32(length**beams.length_penalty) > finished[-1][0]


def _are(tokens: np.ndarray, ends: Collection[int]) -> np.ndarray:
    return np.isin(tokens, list(ends))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)), np.float32)
