"""The decoder against numpy: cache in place, steps of any size, padded batches, refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError, UsageError
from edgekit.runtime.decoder import Decoder
from edgekit.runtime.session import Stopped
from tests.support.tiny_bundle import MAX_LENGTH, VOCABULARY, Weights, decoder_bundle, reference, text_ids
from tests.support.tiny_models import linear_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return decoder_bundle(tmp_path_factory.mktemp("decoder") / "b")


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("pieces", [[40], [1] * 40, [30, 1, 1, 8], [1, 39], [13, 27]])
def test_any_division_of_a_text_gives_the_same_logits(bundle: Bundle, pieces: list[int]) -> None:
    ids, decoder = text_ids(), Decoder(bundle)
    expected, _ = reference(Weights(), ids[0])
    at = 0
    for count in pieces:
        logits = decoder.run(ids[:, at : at + count], keep=0)
        assert logits.shape == (1, count, VOCABULARY)
        close(logits[0], expected[at : at + count])
        at += count
    assert decoder.length == 40


def test_keeps_only_the_last_logits(bundle: Bundle) -> None:
    ids, decoder = text_ids(), Decoder(bundle)
    expected, _ = reference(Weights(), ids[0])
    assert decoder.run(ids).shape == (1, 1, VOCABULARY)
    decoder.reset()
    close(decoder.run(ids, keep=3)[0], expected[-3:])


def test_reset_forgets_what_was_written(bundle: Bundle) -> None:
    decoder = Decoder(bundle)
    decoder.run(text_ids(30))
    decoder.reset()
    ids = text_ids(40)[:, 20:]
    close(decoder.run(ids, keep=0)[0], reference(Weights(), ids[0])[0])


def test_logits_stay_valid_after_the_next_step(bundle: Bundle) -> None:
    decoder = Decoder(bundle)
    first = decoder.run(text_ids(4))
    copy = first.copy()
    decoder.run(text_ids(1))
    np.testing.assert_array_equal(first, copy)


def test_a_right_padded_batch_equals_its_rows(bundle: Bundle) -> None:
    ids = np.random.default_rng(1).integers(0, 256, (2, 12))
    mask = np.ones_like(ids)
    mask[1, 7:] = 0
    later = np.random.default_rng(2).integers(0, 256, (2, 3))
    decoder = Decoder(bundle)
    prefill = decoder.run(ids, mask, keep=0)
    steps = decoder.run(later, keep=2)  # several tokens on a filled cache
    for row, count in enumerate((12, 7)):
        expected, _ = reference(Weights(), np.concatenate([ids[row, :count], later[row]]))
        close(prefill[row, :count], expected[:count])
        close(steps[row], expected[-2:])


def test_the_batch_may_change_after_reset(bundle: Bundle) -> None:
    decoder = Decoder(bundle)
    decoder.run(text_ids(5))
    with pytest.raises(UsageError, match=r"input_ids: 2 rows given, the cache holds 1; call reset\(\) first"):
        decoder.run(np.zeros((2, 1), np.int64))
    decoder.reset()
    assert decoder.run(np.zeros((2, 1), np.int64)).shape == (2, 1, VOCABULARY)


def test_a_full_context_says_so(bundle: Bundle) -> None:
    decoder = Decoder(bundle, max_length=10)
    decoder.run(text_ids(10))
    with pytest.raises(
        UsageError, match=r"context full: 10 \+ 1 tokens, the decoder was opened for 10 \(0 MiB of cache"
    ):
        decoder.run(text_ids(1))
    assert decoder.length == 10


def test_lengths(bundle: Bundle) -> None:
    assert Decoder(bundle).max_length == MAX_LENGTH
    assert Decoder(bundle).cache_bytes == 4 * 2 * 3 * 16 * MAX_LENGTH
    with pytest.raises(UsageError, match=f"max_length 65 is outside 1 to {MAX_LENGTH}"):
        Decoder(bundle, max_length=65)


@pytest.mark.parametrize(
    ("ids", "mask", "message"),
    [
        (np.zeros(3, np.int64), None, r"input_ids: int64 \[3\] given, whole numbers \[batch, tokens\] expected"),
        (np.zeros((1, 3), np.float32), None, "input_ids: float32"),
        (np.zeros((1, 0), np.int64), None, r"\[1, 0\] given"),
        (np.zeros((1, 3), np.int64), np.ones((1, 4), np.int64), r"attention_mask: \[1, 4\] given, \[1, 3\] expected"),
    ],
)
def test_wrong_input_is_named(bundle: Bundle, ids: np.ndarray, mask: np.ndarray | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Decoder(bundle).run(ids, mask)


def test_other_models_are_no_decoders(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="task generic is no language model"):
        Decoder(linear_bundle(tmp_path / "b"))


@pytest.mark.parametrize("keep", [0, 1, 3, 8, 9, 40])
def test_a_prompt_is_fed_in_pieces(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, keep: int) -> None:
    monkeypatch.setattr("edgekit.runtime.decoder.PROMPT_PIECE", 7)
    ids, decoder = text_ids(), Decoder(bundle)
    fed: list[int] = []
    plain = decoder._run

    def run(piece: np.ndarray, rows: int) -> np.ndarray:
        fed.append(piece.shape[1])
        return plain(piece, rows)

    monkeypatch.setattr(decoder, "_run", run)
    logits = decoder.run(ids, keep=keep)
    assert fed == [7, 7, 7, 7, 7, 5]
    close(logits[0], reference(Weights(), ids[0])[0][-(keep or 40) :])


def test_steps_are_runs_of_one_token(bundle: Bundle) -> None:
    ids = text_ids(20)
    expected = reference(Weights(), ids[0])[0]
    decoder = Decoder(bundle)
    close(decoder.step(int(ids[0, 0])), expected[0])  # the first token may come this way too
    decoder.run(ids[:, 1:10])
    for at in range(10, 15):
        close(decoder.step(int(ids[0, at])), expected[at])
    close(decoder.run(ids[:, 15:], keep=0)[0], expected[15:])


def test_a_step_beyond_the_context_is_refused(bundle: Bundle) -> None:
    decoder = Decoder(bundle, max_length=2)
    decoder.run(text_ids(2))
    with pytest.raises(UsageError, match=r"context full: 2 \+ 1 tokens"):
        decoder.step(5)


def test_rewinding_forgets_the_last_tokens(bundle: Bundle) -> None:
    ids, decoder = text_ids(30), Decoder(bundle)
    decoder.run(ids)
    decoder.rewind(12)
    other = np.concatenate([ids[:, :12], ids[:, 3:9]], axis=1)
    close(decoder.run(other[:, 12:], keep=0)[0], reference(Weights(), other[0])[0][12:])
    with pytest.raises(UsageError, match="rewind: 19 given, the cache holds 18 tokens"):
        decoder.rewind(19)


def test_a_cache_moves_to_another_decoder(bundle: Bundle) -> None:
    ids, first = text_ids(30), Decoder(bundle)
    first.run(ids[:, :20])
    second = Decoder(bundle, max_length=32)
    second.refill(first.cache().__getitem__, 15)
    assert second.length == 15
    close(second.run(ids[:, 15:], keep=0)[0], reference(Weights(), ids[0])[0][15:])


def test_a_steps_logits_are_valid_until_the_next(bundle: Bundle) -> None:
    decoder = Decoder(bundle)
    decoder.run(text_ids(4))
    first, kept = decoder.step(5), decoder.run(text_ids(2))[0, -1]
    copies = first.copy(), kept.copy()
    second = decoder.step(7)
    assert np.shares_memory(first, second)
    assert not np.array_equal(first, copies[0])
    np.testing.assert_array_equal(kept, copies[1])


def test_options_do_not_slow_a_step_down(bundle: Bundle) -> None:
    """ONNX Runtime's Python asks for this entry in every run and pays for an exception where it is missing."""
    assert Decoder(bundle)._options.get_run_config_entry("gpu_graph_id") == "0"


def test_a_run_can_be_stopped_between_pieces(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.runtime.decoder.PROMPT_PIECE", 7)
    ids, decoder = text_ids(), Decoder(bundle)
    plain = decoder._run

    def second(piece: np.ndarray, rows: int) -> np.ndarray:
        if decoder.length == 7:
            decoder.stop()
        return plain(piece, rows)

    monkeypatch.setattr(decoder, "_run", second)
    with pytest.raises(Stopped):
        decoder.run(ids)
    assert decoder.length == 7, "what was fed before stays"


def test_a_stopped_decoder_runs_again_after_reset(bundle: Bundle) -> None:
    decoder = Decoder(bundle)
    decoder.stop()
    with pytest.raises(Stopped):
        decoder.run(text_ids(4))
    assert decoder.length == 0
    decoder.reset()
    assert decoder.run(text_ids(4)).shape == (1, 1, VOCABULARY)
