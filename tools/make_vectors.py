"""Golden vectors of the operators: ``python -m tools.make_vectors`` writes tests/vectors/operators, the same bytes always.

``index.json`` lists cases: operator, attributes, and for each array its name, dtype, shape and place in ``vectors.bin``
(little-endian, one after the other). Results are what the reference in numpy computes; every implementation gives those bits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.lowbit.formats import PackedTensor, pack_t2, sparse_rows
from edgekit.lowbit.reference import block_matmul, expert_matmul, int8_matmul, sparse_matmul, ternary_matmul
from edgekit.spec.formats import FORMATS
from edgekit.spec.names import CACHED_ATTENTION, EXPERT_MATMUL
from tests.support import attention

DIRECTORY = Path(__file__).resolve().parent.parent / "tests" / "vectors" / "operators"


@dataclass(frozen=True)
class Case:
    """A call and its results."""

    name: str
    op: str
    attributes: Mapping[str, int | float]
    arrays: dict[str, np.ndarray]  # inputs and outputs


def cases() -> list[Case]:
    """Every kind of scales, rounding, bias and element type, over shapes that fit no block and no panel."""
    shapes = (
        (1, 1, 1), (1, 5, 130), (1, 33, 200), (2, 40, 128), (3, 7, 257), (5, 18, 384), (8, 31, 100), (17, 34, 130), (40, 9, 300),
    )  # fmt: skip
    made: list[Case] = []
    for index, (m, n, k) in enumerate(shapes):
        for kind, block in (("tensor", 0), ("row", 0), ("group", 128), ("row", 128)):
            half = (index + block // 128) % 3 == 2
            made.append(_case("TernaryMatMul", m, n, k, kind, block, index % 2 == 1, half, len(made)))
        made.append(_case("Int8MatMul", m, n, k, "row", 0, index % 2 == 0, index % 3 == 1, len(made)))
    for value in (0.0, 1e-44, 1e30):
        made.append(_case("TernaryMatMul", 2, 6, 200, "tensor", 0, False, False, len(made), value))
        made.append(_case("Int8MatMul", 2, 6, 200, "tensor", 0, False, False, len(made), value))
    for index, (m, n, k) in enumerate(shapes):
        for bits in (4, 8):
            made.append(_sparse_case(m, n, k, bits, 128 * ((index + bits // 8) % 2), index % 2 == 0, len(made)))
    for weights in ("int4", "int8", "int4-fp16"):
        for index, (m, n, k) in enumerate(shapes):
            for block in (16, 32, 64, 128, 256) if m < 10 else (32, 64):
                in_blocks, with_bias = (index + block.bit_length()) % 3 > 0, index % 2 == 1
                made.append(_block_case(weights, m, n, k, block, in_blocks, with_bias, len(made)))
        for value in (0.0, 1e-44, 1e30):
            made.append(_block_case(weights, 2, 6, 200, 64, True, False, len(made), value))
    for format_name, block in (("int4", 32), ("int4", 64), ("int8", 64), ("int8", 16), ("t2", 128)):
        for tokens, each, n, k, experts in ((1, 2, 5, 128, 4), (3, 4, 33, 256, 3), (20, 2, 18, 128, 3)):
            made.append(_expert_case(format_name, tokens, each, n, k, experts, block, len(made)))
    return made + [_attention_case(name, attention.case(seed, *sizes, **more)) for seed, (name, sizes, more) in enumerate(ATTENTION)]  # fmt: skip


ATTENTION: tuple[tuple[str, tuple[Any, ...], dict[str, Any]], ...] = (
    # query heads, key-value heads, floats of a head, new tokens, tokens in the cache, rows
    ("first-token", (2, 2, 8, 1, 0), {}),
    ("one-token", (9, 3, 16, 1, 130), {"turned": 16, "slots": 140}),
    ("one-token-apart-neighbours", (4, 2, 24, 1, 64), {"packed": False, "turned": 24, "rotary_interleaved": 1}),
    ("one-token-sink-cap", (5, 1, 16, 1, 63), {"sink": True, "softcap": 5.0, "turned": 8}),
    ("one-token-window", (4, 2, 8, 1, 200), {"local_window_size": 70, "turned": 8}),
    ("two-tokens-sees-itself", (2, 1, 8, 2, 65), {"local_window_size": 1, "sink": True}),
    ("three-tokens-rows", (6, 2, 8, 3, 70, 2), {"slots": 80, "turned": 8, "local_window_size": 64}),
    ("prompt", (3, 3, 16, 20, 0), {"turned": 16}),
    ("prompt-shared", (9, 3, 8, 40, 0), {"turned": 8, "softcap": 30.0}),
    ("prompt-on-a-cache", (4, 1, 16, 25, 61), {"turned": 16, "slots": 100, "sink": True}),
    ("prompt-window-rows", (2, 2, 8, 70, 20, 2), {"packed": False, "turned": 6, "local_window_size": 33, "rotary_interleaved": 1}),
    ("prompt-large-head", (2, 1, 136, 18, 2), {"turned": 128}),
)  # fmt: skip


def _attention_case(name: str, call: attention.Case) -> Case:
    results = dict(zip(attention.OUTPUTS, call.expected(), strict=True))
    return Case(f"{CACHED_ATTENTION}-{name}", CACHED_ATTENTION, asdict(call.facts), {**call.inputs, **results})


def _expert_case(format_name: str, tokens: int, each: int, n: int, k: int, experts: int, block: int, seed: int) -> Case:
    random, bits = np.random.default_rng(seed), FORMATS[format_name].bits
    by_pair = seed % 2 == 1
    x = (random.standard_normal((tokens, each, k) if by_pair else (tokens, k)) * 3).astype(np.float32)
    index = random.integers(0, experts, (tokens, each))
    codes = random.integers(0, 3 if bits == 2 else 1 << bits, (experts * n, k)).astype(np.uint8)
    places = codes.reshape(experts * n, k // block, -1, 8 // bits) << np.arange(0, 8, bits, dtype=np.uint8)
    data = np.bitwise_or.reduce(places, axis=-1)
    scales = random.uniform(-1.0, 1.0, (experts * n, k // block)).astype(np.float32)
    y = expert_matmul(x, index, PackedTensor(format_name, (experts * n, k), block, data, scales), experts)
    stacked = {"W": data.reshape(experts, n, *data.shape[1:]), "scales": scales.reshape(experts, n, -1)}
    name = f"{seed:03}-{EXPERT_MATMUL}-{bits}-{block}-{tokens}x{each}x{n}x{k}-{experts}{'-by-pair' * by_pair}"
    attributes = {"K": k, "N": n, "bits": bits, "block_size": block}
    return Case(name, EXPERT_MATMUL, attributes, {"X": x, "index": index, **stacked, "Y": y})


def _block_case(
    format_name: str, m: int, n: int, k: int, block: int, in_blocks: bool, with_bias: bool, seed: int,
    value: float | None = None,
) -> Case:  # fmt: skip
    random, bits = np.random.default_rng(seed), FORMATS[format_name].bits
    half = seed % 3 == 0 and value is None
    x = (random.standard_normal((m, k)) * 3).astype(np.float16 if half else np.float32)
    if value is not None:
        x[:] = value
    data = np.full((n, -(-k // block) * block), 1 << (bits - 1), np.uint8)
    data[:, :k] = random.integers(0, 1 << bits, (n, k))
    scales = random.uniform(-1.0, 1.0, (n, -(-k // block))).astype(np.float32)
    if FORMATS[format_name].scale_bits == 16:  # every third is subnormal
        scales = np.where(random.random(scales.shape) < 1 / 3, scales * 6e-5, scales).astype(np.float16)
    bias = random.standard_normal(n).astype(np.float32) if with_bias else None
    packed = (data if bits == 8 else data[:, 0::2] | data[:, 1::2] << 4).reshape(n, -1, block * bits // 8)
    own = block if in_blocks else 0
    y = block_matmul(x.astype(np.float32), PackedTensor(format_name, (n, k), block, packed, scales), bias, own).astype(
        x.dtype
    )
    op = FORMATS[format_name].operator
    arrays = {"X": x, "W": packed, "scales": scales, **({"bias": bias} if bias is not None else {}), "Y": y}
    kind = "-half-scales" if scales.dtype == np.float16 else ""
    name = f"{seed:03}-{op}-{block}-{m}x{n}x{k}-{own}{'-bias' * with_bias}{'-half' * half}{kind}"
    return Case(name, op, {"K": k, "N": n, "block_size": block, "activation_block_size": own}, arrays)


def _sparse_case(m: int, n: int, k: int, bits: int, block: int, with_bias: bool, seed: int) -> Case:
    random = np.random.default_rng(seed)
    half = seed % 3 == 0
    x = (random.standard_normal((m, k)) * 3).astype(np.float16 if half else np.float32)
    codes = random.integers(-(1 << (bits - 1)), 1 << (bits - 1), (n, k)).astype(np.int8)
    codes[random.random((n, k)) < random.uniform(0, 1, (n, 1))] = 0  # rows of any density
    scales = random.uniform(0.01, 1.0, (n,)).astype(np.float32)
    bias = random.standard_normal(n).astype(np.float32) if with_bias else None
    weight = PackedTensor(f"sparse-int{bits}", (n, k), 128, sparse_rows.pack([codes], n, bits), scales)
    y = sparse_matmul(x.astype(np.float32), weight, bias, block).astype(x.dtype)
    arrays = {"X": x, "W": weight.data, "scales": scales, **({"bias": bias} if bias is not None else {}), "Y": y}
    name = f"{seed:02}-SparseMatMul-{bits}-{m}x{n}x{k}-{block}{'-bias' * with_bias}{'-half' * half}"
    return Case(name, "SparseMatMul", {"K": k, "N": n, "bits": bits, "activation_block_size": block}, arrays)


def _case(
    op: str, m: int, n: int, k: int, kind: str, block: int, with_bias: bool, half: bool, seed: int, value: float | None = None
) -> Case:  # fmt: skip
    random = np.random.default_rng(seed)
    x = (random.standard_normal((m, k)) * 3).astype(np.float16 if half else np.float32)
    if value is not None:
        x[:] = value
    scales = random.uniform(0.01, 1.0, {"tensor": (1,), "row": (n,), "group": (n, -(-k // 128))}[kind]).astype(
        np.float32
    )
    bias = random.standard_normal(n).astype(np.float32) if with_bias else None
    weight = _weight(op, random, n, k, scales)
    reference = ternary_matmul if op == "TernaryMatMul" else int8_matmul
    y = reference(x.astype(np.float32), weight, bias, block).astype(x.dtype)
    arrays = {"X": x, "W": weight.data, "scales": scales, **({"bias": bias} if bias is not None else {}), "Y": y}
    name = f"{seed:02}-{op}-{m}x{n}x{k}-{kind}-{block}{'-bias' * with_bias}{'-half' * half}"
    return Case(name, op, {"K": k, "N": n, "activation_block_size": block}, arrays)


def _weight(op: str, random: np.random.Generator, n: int, k: int, scales: np.ndarray) -> PackedTensor:
    if op == "TernaryMatMul":
        return pack_t2(random.integers(-1, 2, (n, k)).astype(np.int8), scales)
    data = np.full((n, -(-k // 128) * 128), 128, np.uint8)
    data[:, :k] = random.integers(0, 256, (n, k))
    return PackedTensor("int8-channel", (n, k), 128, data.reshape(n, -1, 128), scales)


def write(directory: Path) -> None:
    """index.json and vectors.bin."""
    directory.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    with (directory / "vectors.bin").open("wb") as file:
        for case in cases():
            arrays = {}
            for name, array in case.arrays.items():
                arrays[name] = {"dtype": str(array.dtype), "shape": list(array.shape), "offset": file.tell()}
                file.write(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
            listed.append({"name": case.name, "op": case.op, "attributes": case.attributes, "arrays": arrays})
    text = json.dumps({"format": 1, "cases": listed}, indent=1) + "\n"
    (directory / "index.json").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    write(DIRECTORY)
    print(f"{len(cases())} cases, {(DIRECTORY / 'vectors.bin').stat().st_size} bytes in {DIRECTORY}")
