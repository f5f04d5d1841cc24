"""Choosing the next token from logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; ``temperature`` 0 takes the likeliest (the default)."""

    temperature: float = 0.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None  # None: another text every time

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UsageError(f"temperature: {self.temperature} is negative; 0 takes the likeliest token, 0.7 is usual")
        if self.top_k < 0:
            raise UsageError(f"top_k: {self.top_k} is negative; 0 considers all tokens")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p: {self.top_p} is outside (0, 1]; 1 considers all tokens")
        if not self.repetition_penalty > 0:
            raise UsageError(f"repetition_penalty: {self.repetition_penalty} is not above 0; 1 is none")
        if self.seed is not None and self.seed < 0:
            raise UsageError(f"seed: {self.seed} is negative")


def draw(logits: np.ndarray, sampling: Sampling, random: np.random.Generator, seen: Sequence[int]) -> int:
    """The next token from logits float32 [V], in transformers' order: penalty, temperature, top-k, top-p."""
    if sampling.repetition_penalty != 1.0:
        logits = logits.copy()
        at = np.unique(np.asarray(seen, np.int64))
        penalty = sampling.repetition_penalty
        logits[at] = np.where(logits[at] > 0, logits[at] / penalty, logits[at] * penalty)
    if sampling.temperature == 0:
        return int(logits.argmax())
    chances = probabilities(logits, sampling)
    return int(random.choice(chances.size, p=chances))


def probabilities(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """What ``draw`` draws from after the penalty: float64 [V], zero where top-k or top-p exclude a token."""
    scaled = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < scaled.size:
        scaled[scaled < np.partition(scaled, -sampling.top_k)[-sampling.top_k]] = -np.inf
    chances: np.ndarray = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    if sampling.top_p < 1.0:
        order = np.argsort(-chances, kind="stable")
        before = np.cumsum(chances[order]) - chances[order]
        chances[order[before >= sampling.top_p]] = 0.0  # the likeliest always stays
        chances /= chances.sum()
    return chances
