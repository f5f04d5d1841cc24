"""Prompt lookup: what is proposed, and that the text stays greedy decoding's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.generation import generate
from edgekit.runtime.lookup import SIZES, Lookup, next_tokens
from edgekit.runtime.sampling import Sampling
from edgekit.runtime.tokenizer import Tokenizer
from tests.support.tiny_bundle import decoder_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("lookup") / "b")


def test_proposes_what_followed_before() -> None:
    assert Lookup([1, 2, 3, 4, 5, 1, 2], most=2).propose() == [3, 4]
    assert Lookup([1, 2, 3, 4, 5, 1, 2], most=9).propose() == [3, 4, 5, 1, 2]
    assert Lookup([1, 2, 3], most=4).propose() == []
    # The longest match wins, then the latest.
    assert Lookup([1, 2, 3, 7, 2, 3, 8, 1, 2, 3], most=1).propose() == [7]
    assert Lookup([2, 3, 7, 2, 3, 8, 2, 3], most=1).propose() == [8]


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 6))
def test_every_proposal_stood_after_the_same_tokens(tokens: list[int], most: int) -> None:
    found = Lookup(tokens, most).propose()
    assert len(found) <= most
    if found:
        assert any(
            tokens[at : at + size] == tokens[-size:] and tokens[at + size : at + size + len(found)] == found
            for size in SIZES
            for at in range(len(tokens) - size)
        )


def test_ventures_less_after_a_refusal_and_more_after_success() -> None:
    lookup = Lookup([1, 2, *range(10, 30), 1, 2], most=8)
    assert len(lookup.propose()) == 8
    lookup.count(8, 0)
    assert len(lookup.propose()) == 1
    lookup.count(1, 1)
    assert len(lookup.propose()) == 3
    lookup.count(3, 3)
    assert len(lookup.propose()) == 7
    assert (lookup.proposed, lookup.accepted) == (12, 4)


@pytest.mark.parametrize("prompt", ["abcabcabc", "the cat the cat the cat", "xyz", "aaaaaaaaaa", "to be or not to be"])
def test_the_text_is_greedy_decodings(bundle: Bundle, prompt: str) -> None:
    plain = generate(bundle, prompt, chat=False, max_new_tokens=30)
    text = "".join(plain)
    ahead = generate(bundle, prompt, chat=False, max_new_tokens=30, lookup=4)
    assert "".join(ahead) == text
    assert ahead.tokens == plain.tokens
    assert ahead.finish == plain.finish
    assert 0 <= ahead.accepted_tokens <= ahead.proposed_tokens


def test_right_and_wrong_proposals(bundle: Bundle) -> None:
    """The decoder is left with the text but its last token, whatever was proposed."""
    plain = generate(bundle, "abc", chat=False, max_new_tokens=12)
    list(plain)
    for wrong in range(6):
        decoder = Decoder(bundle)
        draft = [*plain.tokens[1:6]]
        if wrong < 5:
            draft[wrong] = (draft[wrong] + 1) % 250
        prompt = Tokenizer(bundle).encode("abc")
        decoder.run(np.array([prompt], np.int64))
        lookup = Lookup(prompt, most=8)
        lookup.propose = lambda draft=draft: draft  # type: ignore[method-assign,misc]
        found = next_tokens(decoder, lookup, plain.tokens[0])
        assert found == plain.tokens[1 : wrong + 2]
        assert decoder.length == 4 + len(found)
        assert int(decoder.step(found[-1]).argmax()) == plain.tokens[len(found) + 1]


def test_the_context_may_end_within_a_proposal(bundle: Bundle) -> None:
    decoder = Decoder(bundle, max_length=24)
    running = generate(decoder, "abababababab", chat=False, max_new_tokens=40, lookup=8)
    plain = generate(Decoder(bundle, max_length=24), "abababababab", chat=False, max_new_tokens=40)
    assert "".join(running) == "".join(plain)
    assert running.finish == plain.finish == "length"


def test_greedy_only(bundle: Bundle, tmp_path: Path) -> None:
    for sampling in (Sampling(temperature=0.5), Sampling(repetition_penalty=1.1)):
        with pytest.raises(UsageError, match="lookup: proposes the likeliest tokens only"):
            generate(bundle, "abc", lookup=4, sampling=sampling)
    with pytest.raises(UsageError, match="lookup: -1 is negative"):
        generate(bundle, "abc", lookup=-1)
