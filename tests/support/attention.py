"""CachedAttention in one-node models: random cases, and sessions that run them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import onnxruntime

from edgekit.lowbit.attention_reference import Attention, cached_attention
from edgekit.lowbit.functions import ATTENTION_FLOATS, ATTENTION_INPUTS, ATTENTION_INTS, attention_function
from edgekit.lowbit.library import load_library
from edgekit.spec.names import CACHED_ATTENTION, EDGEKIT, MICROSOFT

RANKS = (3, 3, 3, 4, 4, 1, 1, 2, 2, 1)
OUTPUTS = ("output", "present_key", "present_value")


@dataclass(frozen=True)
class Case:
    """A call: attributes, and inputs by name with those that are left out not there."""

    facts: Attention
    inputs: Mapping[str, np.ndarray]

    def expected(self) -> tuple[np.ndarray, ...]:
        """By the reference."""
        given = dict(self.inputs)
        heads, groups = self.facts.num_heads, self.facts.kv_num_heads
        query = given["query"]
        if "key" not in given:
            size = query.shape[2] // (heads + 2 * groups)
            query, given["key"], given["value"] = np.split(query, [heads * size, (heads + groups) * size], axis=2)
        total = int(given["total_sequence_length"][0])
        room = [(0, 0), (0, 0), (0, max(0, total - given["past_key"].shape[2])), (0, 0)]
        past = [np.pad(given[name], room) for name in ("past_key", "past_value")]
        for b, end in enumerate(given["seqlens_k"]):
            for cache in past:
                cache[b, :, int(end) + 1 - query.shape[1] :] = 0  # what is behind the tokens is not kept
        return cached_attention(
            self.facts, query, given["key"], given["value"], past[0], past[1], given["seqlens_k"], given.get("cos_cache"),
            given.get("sin_cache"), given.get("head_sink"),
        )  # fmt: skip


def case(
    seed: int, heads: int, groups: int, dim: int, tokens: int, past: int, batch: int = 1, slots: int = 0,
    packed: bool = True, turned: int = 0, sink: bool = False, **attributes: Any,
) -> Case:  # fmt: skip
    """Random numbers; ``slots`` of the cache at least as many as there are tokens; ``turned`` floats of a head rotate."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 1.5).astype(np.float32)

    inputs = {"query": normal(batch, tokens, (heads + 2 * groups) * dim)}
    if not packed:
        inputs = {"query": normal(batch, tokens, heads * dim)}
        inputs |= {name: normal(batch, tokens, groups * dim) for name in ("key", "value")}
    total, length = past + tokens, max(slots, past)
    inputs |= {name: normal(batch, groups, length, dim) for name in ("past_key", "past_value")}
    # Rows of a batch end where they like, the last one at the end.
    ends = [*random.integers(tokens - 1, total, batch - 1), total - 1]
    inputs["seqlens_k"] = np.array(ends, np.int32)
    inputs["total_sequence_length"] = np.array([total], np.int32)
    if turned:
        angles = np.outer(np.arange(total), 1e4 ** -np.linspace(0, 1, turned // 2))
        inputs |= {"cos_cache": np.cos(angles).astype(np.float32), "sin_cache": np.sin(angles).astype(np.float32)}
    if sink:
        inputs["head_sink"] = normal(heads)
    facts = Attention(heads, groups, attributes.pop("scale", dim**-0.5), do_rotary=int(turned > 0), **attributes)
    return Case(facts, inputs)


@lru_cache(maxsize=64)
def session(
    facts: Attention,
    present: tuple[str, ...],
    isa: str,
    threads: int = 2,
    left_out: str = "",
    kinds: tuple[tuple[str, str], ...] = (),
) -> onnxruntime.InferenceSession:
    """The operator with an instruction set, "" for the library's own choice, or ``body``, the function body.

    ``left_out`` is an attribute; ``kinds`` are other element types of inputs.
    """
    types = {
        name: "int32" if name in ("seqlens_k", "total_sequence_length") else "float" for name in ATTENTION_INPUTS
    } | dict(kinds)
    inputs = [
        ir.Value(
            name=name,
            type=ir.TensorType(ir.DataType[types[name].upper()]),
            shape=ir.Shape([f"{name}{i}" for i in range(rank)]),
        )
        if name in present
        else None
        for name, rank in zip(ATTENTION_INPUTS, RANKS, strict=True)
    ]  # fmt: skip
    values = asdict(facts)
    attributes = [ir.AttrInt64(name, values[name]) for name in ATTENTION_INTS if name != left_out]
    attributes += [ir.AttrFloat32(name, values[name]) for name in ATTENTION_FLOATS if name != left_out]
    node = ir.Node(EDGEKIT, CACHED_ATTENTION, inputs, attributes, num_outputs=3, name="node")
    for output, name in zip(node.outputs, OUTPUTS, strict=True):
        output.name, output.type = name, ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [v for v in inputs if v is not None], node.outputs, nodes=[node],
        opset_imports={"": 21, MICROSOFT: 1, EDGEKIT: 1}, name="g",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10, functions=[attention_function()] if isa == "body" else [])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    with mock.patch.dict(os.environ, {} if isa in ("", "body") else {"EDGEKIT_ISA": isa}):
        if isa != "body":
            library = load_library()
            assert library is not None
            options.register_custom_ops_library(str(library.path))
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def run(one: Case, isa: str = "", threads: int = 2) -> tuple[np.ndarray, ...]:
    """Output and caches of a call."""
    made = session(one.facts, tuple(one.inputs), isa, threads).run(None, dict(one.inputs))
    return tuple(made)
