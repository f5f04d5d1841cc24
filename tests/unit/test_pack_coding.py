"""The coder of packs: what it writes is near the entropy, C++ and numpy do the same, and every layout comes back."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.coding import native, portable, segments, streams, tables
from edgekit.coding.bits import BitReader, BitWriter, Reader, number
from edgekit.coding.regions import CHUNK, Region, chunks
from edgekit.coding.segments import LAYOUTS, Piece, decode_chunk, encode_chunk

Symbols = np.ndarray


@pytest.fixture
def library() -> native.Native:
    found = native.load()
    if found is None:
        pytest.fail("the library of packs is not built: make kernels")
    return found


@pytest.fixture
def numpy_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: None)


def gaussian(shape: float, size: int, deviation: float, seed: int = 0) -> Symbols:
    """Generalized Gaussian weights of ``deviation`` steps, as codes around 128."""
    random = np.random.default_rng(seed)
    values = random.gamma(1 / shape, size=size) ** (1 / shape) * random.choice([-1, 1], size)
    return np.asarray(np.clip(np.rint(values / values.std() * deviation), -127, 127) + 128, np.uint8)


def entropy_bytes(symbols: Symbols) -> float:
    """What no code without context can beat, by the counts of these very symbols."""
    counts = np.unique(symbols, return_counts=True)[1]
    return float((counts * np.log2(len(symbols) / counts)).sum() / 8)


def coded(symbols: Symbols, width: int, base: Symbols | None = None) -> bytes:
    stream = streams.encode_stream(symbols, width, base)
    found = streams.decode_stream(memoryview(stream), len(symbols), width, base)
    assert np.array_equal(found, symbols)
    return stream


# Numbers and tables


@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 4096))
def test_numbers_come_back(value: int, k: int, small: int) -> None:
    assert Reader(memoryview(number(value))).number(2**32) == value
    bits = BitWriter()
    bits.bits(5, 3)
    bits.golomb(small, k)
    back = BitReader(Reader(memoryview(bits.to_bytes())))
    assert (back.bits(3), back.golomb(k, 4096)) == (5, small)


def test_damaged_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="a number has more than five bytes"):
        Reader(memoryview(b"\xff" * 9)).number(2**35)
    with pytest.raises(ValueError, match="300 where at most 299 can be"):
        Reader(memoryview(number(300))).number(299)
    with pytest.raises(ValueError, match="a frequency is too large"):
        BitReader(Reader(memoryview(bytes(9)))).golomb(0, 4096)
    with pytest.raises(ValueError, match="2 bytes expected, 1 are left"):
        Reader(memoryview(b"a")).take(2)


@given(st.lists(st.integers(0, 10**6), min_size=256, max_size=256).filter(any), st.integers(0, 255))
def test_a_table_adds_up_and_comes_back(counts: list[int], centre: int) -> None:
    model = tables.model_of(np.array([counts]), 8, 16, tables.ALONE, centre)
    assert model.tables.sum() == tables.SCALE
    back = tables.read_model(Reader(memoryview(model.to_bytes())), 8)
    assert np.array_equal(back.tables, model.tables) and back.escape == model.escape and back.centre == centre


def test_classes_are_four_an_octave_and_rise() -> None:
    found = [tables.neighbourhood(a) for a in range(1 << 14)]
    assert found == sorted(found) and found[-1] < tables.CLASSES
    assert [found[a] for a in (0, 3, 4, 7, 8, 9, 10, 16, 8195)] == [0, 3, 4, 7, 8, 8, 9, 12, 48]


# Streams

cases = st.tuples(
    st.sampled_from([2, 4, 8]), st.integers(1, 40), st.sampled_from([1, 7, 1000, 9000]), st.sampled_from([0.3, 2, 40]),
    st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip


def symbols_of(case: tuple[int, int, int, float, bool, int]) -> tuple[Symbols, int, Symbols | None]:
    """Symbols whose magnitude changes along the way, and perhaps a base that they depend on."""
    width, odd, size, spread, based, seed = case
    random = np.random.default_rng(seed)
    loud = np.exp(random.normal(size=size // 200 + 2)).repeat(200)[: size + odd]
    values = np.rint(random.laplace(size=len(loud)) * spread * loud).astype(np.int64) % (1 << width)
    base = random.integers(0, 1 << width, len(values)).astype(np.uint8) if based else None
    if base is not None:
        values[base < (1 << width) // 2] = 0
    return values.astype(np.uint8), width, base


@settings(max_examples=40)
@given(cases)
def test_native_and_numpy_code_the_same_bytes(case: tuple[int, int, int, float, bool, int]) -> None:
    library = native.load()
    assert library is not None
    symbols, width, base = symbols_of(case)
    stream = coded(symbols, width, base)
    assert np.array_equal(library.count(symbols, width, 3), portable.count(symbols, width, 3))
    if stream[0] == streams.CODED:
        body = memoryview(stream)[1:]
        assert np.array_equal(portable.decode(body, len(symbols), width, base), symbols)
        model = tables.read_model(Reader(body), width)
        written = model.to_bytes() + portable.encode(symbols, model, base)
        assert written == model.to_bytes() + library.encode(symbols, model, base)


def test_every_kind_of_stream_is_met(library: native.Native) -> None:
    """The property above means something only when all of them come up."""
    loud = np.repeat([1, 20], 20_000)
    values = (np.rint(np.random.default_rng(0).laplace(size=40_000) * loud).astype(np.int64) % 256).astype(np.uint8)
    assert coded(values, 8)[1] >> 3 & 3 == tables.NEIGHBOURS
    base = np.random.default_rng(1).integers(0, 16, 40_000).astype(np.uint8)
    assert coded(np.where(base < 8, 0, base).astype(np.uint8), 4, base)[1] >> 3 & 3 == tables.BASE
    plain = coded(gaussian(1, 40_000, 1.0), 8)
    assert plain[1] >> 3 & 3 == tables.ALONE and plain[1] >> 5 == 1
    assert coded(np.full(9, 7, np.uint8), 8) == bytes([streams.ONE, 7])
    assert coded(np.arange(256, dtype=np.uint8), 8)[0] == streams.STORED


@pytest.mark.parametrize("shape", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("deviation", [0.3, 1.0, 4.0])
def test_a_stream_is_near_the_entropy(shape: float, deviation: float) -> None:
    """About 0.5, 2 and 4 bits a weight; head, tables and states count."""
    symbols = gaussian(shape, 1 << 19, deviation)
    assert len(coded(symbols, 8)) < 1.01 * entropy_bytes(symbols)


def test_neighbours_make_rows_of_different_scale_smaller() -> None:
    random = np.random.default_rng(0)
    rows = random.laplace(size=(512, 512)) * np.exp(random.normal(size=(512, 1)))
    symbols = (np.clip(np.rint(2 * rows), -127, 127) + 128).astype(np.uint8).reshape(-1)
    assert len(coded(symbols, 8)) < 0.94 * entropy_bytes(symbols)


def test_rows_of_zeros_cost_nothing() -> None:
    rows = gaussian(1.0, 1 << 20, 1.0).reshape(256, -1)
    rows[::2] = 128
    alone = len(coded(np.ascontiguousarray(rows[1::2]).reshape(-1), 8))
    assert len(coded(rows.reshape(-1), 8)) < 1.04 * alone


def test_ternary_takes_1_59_bits(numpy_only: None) -> None:
    symbols = np.random.default_rng(0).integers(0, 3, 30_000).astype(np.uint8)
    assert 8 * len(coded(symbols, 2)) / len(symbols) < 1.62


def test_streams_of_unknown_kind_or_length_are_refused(library: native.Native) -> None:
    stream = coded(gaussian(1, 9000, 1.0), 8)
    for damaged, size in ((b"", 9), (b"\x07", 9), (b"\x01\x10", 9), (b"\x00ab", 9)):
        with pytest.raises(ValueError, match="a stream of"):
            streams.decode_stream(memoryview(damaged), size, 4)
    for decode in (library.decode, portable.decode):
        for size in (8999, 9001):
            with pytest.raises(ValueError, match="stream"):
                decode(memoryview(stream)[1:], size, 8, None)
    based = coded(np.zeros(40_000, np.uint8) + (np.arange(40_000) % 16 > 8), 4, np.arange(40_000).astype(np.uint8) % 16)
    for decode in (library.decode, portable.decode):
        with pytest.raises(ValueError, match="refers to a base version, and there is none"):
            decode(memoryview(based)[1:], 40_000, 4, None)


@settings(max_examples=150)
@given(st.data())
def test_both_decoders_judge_a_damaged_stream_alike(data: st.DataObject) -> None:
    """Any bytes: the same symbols or a ValueError of both; the C++ one is under the sanitizers in tests/native."""
    library = native.load()
    assert library is not None
    symbols, width, base = symbols_of((4, 1, 700, 1.0, data.draw(st.booleans()), 1))
    stream = bytearray(streams.encode_stream(symbols, width, base))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(1, len(stream) - 1) | st.integers(1, 12))
        stream[at] ^= data.draw(st.integers(1, 255))
    answers: list[bytes | None] = []
    for decode in (library.decode, portable.decode):
        try:
            answers.append(decode(memoryview(stream)[1:], len(symbols), width, base).tobytes())
        except ValueError:
            answers.append(None)
    assert answers[0] == answers[1]


# Chunks


@settings(max_examples=60)
@given(st.integers(0, len(LAYOUTS) - 1), st.integers(1, 300), st.booleans(), st.integers(0, 2**32 - 1))
def test_a_chunk_comes_back_in_every_layout(layout: int, elements: int, based: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    data = np.rint(random.normal(size=elements * 8) * 3).astype(np.int8).view(np.uint8)
    base = np.where(random.random(len(data)) < 0.8, data, 1).astype(np.uint8) if based else None
    packed = segments._symbols(data, layout, base)
    whole = bytes([segments.SYMBOLS]) + number(len(data)) + packed
    assert np.array_equal(decode_chunk(memoryview(whole), len(data), base), data)
    assert np.array_equal(
        decode_chunk(memoryview(encode_chunk([Piece(data, (layout,), True, base)])), len(data), base), data
    )


def test_the_smallest_segment_is_taken() -> None:
    random = np.random.default_rng(0)
    nibbles = np.clip(np.rint(random.normal(size=(2, 4000)) * 1.5) + 8, 0, 15).astype(np.uint8)
    text = np.frombuffer(b"the quick brown fox jumps over the lazy dog " * 40, np.uint8)
    floats = random.normal(size=4000).astype(np.float32).view(np.uint8)
    cases = [
        (Piece(np.zeros(500, np.uint8)), segments.FILL),
        (Piece(text), segments.DEFLATE),
        (Piece(random.integers(0, 256, 500).astype(np.uint8)), segments.STORED),
        (Piece(nibbles[0] | nibbles[1] << np.uint8(4), (0, 1, 2)), segments.SYMBOLS),
        (Piece(floats, (segments.BYTES, segments.FLOATS)), segments.SYMBOLS),
    ]
    for piece, method in cases:
        chunk = encode_chunk([piece])
        assert chunk[0] == method
        assert np.array_equal(decode_chunk(memoryview(chunk), len(piece.data), None), piece.data)
    assert len(encode_chunk([cases[4][0]])) < 0.9 * len(floats)
    together = [piece for piece, _ in cases]
    data = np.concatenate([piece.data for piece in together])
    assert np.array_equal(decode_chunk(memoryview(encode_chunk(together)), len(data), None), data)


def test_regions_are_cut_into_chunks_that_fill_them() -> None:
    parts = [Region(0, 3 * CHUNK + 5, (0,)), Region(3 * CHUNK + 5, 91, ()), Region(3 * CHUNK + 96, 900_000, (1,), 96)]
    parts.append(Region(3 * CHUNK + 900_096, 300_000, (1,), 900_096))
    made = list(chunks(parts))
    flat = [part for group in made for part in group]
    assert flat[0].offset == 0 and sum(part.length for part in flat) == 3 * CHUNK + 1_200_096
    assert all(a.offset + a.length == b.offset for a, b in pairwise(flat))
    assert all(sum(part.length for part in group) <= CHUNK for group in made)
    for group in made:
        assert len({None if part.base is None else part.base - part.offset for part in group}) == 1
