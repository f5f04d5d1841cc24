"""Speculative decoding by prompt lookup: what followed the same words before is proposed, and checked in one run.

Source: prompt lookup decoding (A. Saxena, 2023); the check is that of greedy speculative decoding (arXiv 2211.17192): a
proposed token stays if it is the one that the model itself takes when it sees the proposal.

ONNX Runtime's attention and 4-bit product round several tokens at once otherwise than one at a time, so the text is
greedy decoding's up to rounding: where two words are nearly equally likely the other one may come (measured in
docs/llm.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.runtime.decoder import Decoder

SIZES = (4, 3, 2)
"""Tokens that must have come before in the same order; more are tried first."""


class Lookup:
    """The text so far, by the short sequences in it."""

    def __init__(self, tokens: Sequence[int], most: int) -> None:
        """``most``: tokens proposed at a time; fewer after proposals that were turned down."""
        self.most = self._now = most
        self.proposed = self.accepted = 0
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}  # a sequence -> where it last ended, the end of the text left out
        for token in tokens:
            self.push(token)

    def push(self, token: int) -> None:
        """One more token of the text."""
        for size in SIZES:
            if len(self._tokens) >= size:
                self._ends[tuple(self._tokens[-size:])] = len(self._tokens)
        self._tokens.append(token)

    def propose(self) -> list[int]:
        """What followed the end of the text where it stood before; nothing where it never did."""
        for size in SIZES:
            end = self._ends.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if end is not None:
                return self._tokens[end : end + self._now]
        return []

    def count(self, proposed: int, accepted: int) -> None:
        """What became of a proposal: as many more are ventured next time as went well."""
        self.proposed += proposed
        self.accepted += accepted
        self._now = min(self.most, accepted + 1 + (accepted == proposed) * proposed)


def next_tokens(decoder: Decoder, lookup: Lookup, token: int) -> list[int]:
    """Feeds ``token``, the last of the text, and returns the likeliest tokens one after the other, at least one.

    The decoder then holds the text up to the last token but one.
    """
    draft = lookup.propose()[: decoder.max_length - decoder.length - 1]
    if not draft:
        return [int(decoder.step(token).argmax())]
    start = decoder.length
    logits = decoder.run(np.array([[token, *draft]], np.int64), keep=0)[0]
    tokens: list[int] = []
    for row, guess in zip(logits, [*draft, -1], strict=True):
        tokens.append(int(row.argmax()))
        if tokens[-1] != guess:
            break
    decoder.rewind(start + len(tokens))
    lookup.count(len(draft), len(tokens) - 1)
    return tokens
