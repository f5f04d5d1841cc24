"""A hand-made decoder bundle, and the same decoder in numpy: what runtime, parity and bench are tested on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from safetensors.numpy import save_file

from edgekit.bundle import Bundle, BundleWriter, Manifest, write_graph
from edgekit.bundle.manifest import schema_version
from edgekit.recipe import Recipe
from edgekit.spec.names import MICROSOFT
from edgekit.spec.records import DecoderInfo, Layer, StateTensor, TensorInfo, VectorInfo

LAYERS, HEADS, KV_HEADS, DIM, HIDDEN, MAX_LENGTH = 3, 2, 1, 16, 32, 64
SPECIAL = ("<bos>", "<eos>", "<user>")
VOCABULARY = 256 + len(SPECIAL)
BOS, EOS = 256, 257
FLOAT = ir.DataType.FLOAT


@dataclass
class Weights:
    """Random weights of a small decoder; a fixed seed. With a ``window`` the second layer is no attention but a causal
    convolution of so many tokens."""

    seed: int = 0
    window: int = 0
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        self.arrays["embed"] = random.normal(size=(VOCABULARY, HIDDEN)).astype(np.float32)
        for i in range(LAYERS):
            shapes = {
                "qkv": ((HEADS + 2 * KV_HEADS) * DIM, HIDDEN),
                "o": (HIDDEN, HEADS * DIM),
                "mlp": (HIDDEN, HIDDEN),
            }
            for name, shape in shapes.items():
                self.arrays[f"{i}.{name}"] = (random.normal(size=shape) / np.sqrt(shape[1])).astype(np.float32)
        angle = np.outer(np.arange(MAX_LENGTH), 100.0 ** (-np.arange(DIM // 2) / (DIM // 2)))
        self.arrays["cos"], self.arrays["sin"] = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
        self.arrays["window"] = random.normal(size=(HIDDEN, 1, self.window)).astype(np.float32)

    def attends(self, layer: int) -> bool:
        return layer != 1 or not self.window


def reference(weights: Weights, ids: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Logits [T, V] and each layer's output [T, H] of one row of tokens, in numpy."""
    w = weights.arrays
    x, taps, length = w["embed"][ids].astype(np.float64), {}, len(ids)
    for i in range(LAYERS):
        if not weights.attends(i):
            before = np.concatenate([np.zeros((weights.window - 1, HIDDEN)), _norm(x)])
            x = x + sum(before[at : at + length] * w["window"][:, 0, at] for at in range(weights.window))
            taps[f"layers.{i}"] = x.astype(np.float32)
            continue
        q, k, v = np.split(_norm(x) @ w[f"{i}.qkv"].T, [HEADS * DIM, (HEADS + KV_HEADS) * DIM], axis=1)
        q, k = (_rope(w, a.reshape(length, -1, DIM)) for a in (q, k))
        out = np.zeros((length, HEADS, DIM))
        for head in range(HEADS):
            scores = q[:, head] @ k[:, 0].T / np.sqrt(DIM)
            scores[np.triu_indices(length, 1)] = -np.inf
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = chances / chances.sum(-1, keepdims=True) @ v
        x = x + out.reshape(length, -1) @ w[f"{i}.o"].T
        x = x + np.maximum(_norm(x) @ w[f"{i}.mlp"].T, 0)
        taps[f"layers.{i}"] = x.astype(np.float32)
    return (_norm(x) @ w["embed"].T).astype(np.float32), taps


def _norm(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5))


def _rope(w: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    cos, sin = w["cos"][: len(x), None], w["sin"][: len(x), None]
    a, b = np.split(x, 2, axis=-1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class GraphWriter:
    """Builds an ONNX graph node by node."""

    def __init__(self) -> None:
        self.nodes: list[ir.Node] = []
        self.inputs: list[ir.Value] = []
        self.initializers: list[ir.Value] = []

    def input(self, name: str, dtype: ir.DataType, dims: list[int | str]) -> ir.Value:
        self.inputs.append(ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims)))
        return self.inputs[-1]

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
        self.initializers.append(value)
        return value

    def op(
        self,
        op: str,
        *inputs: ir.Value | None,
        name: str = "",
        domain: str = "",
        outputs: int = 1,
        **attributes: Any,
    ) -> list[ir.Value]:
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in attributes.items()]
        node = ir.Node(domain, op, inputs, attrs, num_outputs=outputs, name=f"node{len(self.nodes)}")
        for index, value in enumerate(node.outputs):
            value.name = f"{name or node.name}{f':{index}' if index else ''}"
        self.nodes.append(node)
        return list(node.outputs)

    def model(self, outputs: dict[str, tuple[ir.Value, list[int | str]]], **extra: object) -> ir.Model:
        for name, (value, dims) in outputs.items():
            value.name, value.type, value.shape = name, ir.TensorType(FLOAT), ir.Shape(dims)
        graph = ir.Graph(
            self.inputs, [value for value, _ in outputs.values()], nodes=self.nodes, initializers=self.initializers,
            opset_imports={"": 21, MICROSOFT: 1, "ai.edgekit": 1}, name="tiny",
        )  # fmt: skip
        return ir.Model(graph, ir_version=10, **extra)  # type: ignore[arg-type]


def decoder_graph(weights: Weights) -> ir.Model:
    """The decoder of ``reference`` with the inputs and outputs that edgekit's decoders have; right padding only."""
    g, w = GraphWriter(), weights.arrays
    ids = g.input("input_ids", ir.DataType.INT64, ["batch_size", "sequence_length"])
    mask = g.input("attention_mask", ir.DataType.INT64, ["batch_size", "total_sequence_length"])
    keep = g.constant("logits_to_keep", np.zeros(1, np.int64))
    g.inputs.append(keep)
    one, axis = g.constant("one", np.ones(1, np.int64)), g.constant("axis", np.ones(1, np.int64))
    (used,) = g.op("ReduceSum", mask, axis, keepdims=0)
    (lengths,) = g.op("Cast", g.op("Sub", used, one)[0], to=ir.DataType.INT32.value)
    (total,) = g.op("Cast", g.op("Squeeze", g.op("Shape", mask, start=1, end=2)[0])[0], to=ir.DataType.INT32.value)
    embed, scale = g.constant("embed", w["embed"]), g.constant("scale", np.ones(HIDDEN, np.float32))
    cos, sin = g.constant("cos", w["cos"]), g.constant("sin", w["sin"])
    (x,) = g.op("Gather", embed, ids)
    outputs: dict[str, tuple[ir.Value, list[int | str]]] = {}
    for i in range(LAYERS):
        if not weights.attends(i):
            dims: list[int | str] = ["batch_size", HIDDEN, weights.window - 1]
            turned = g.op("Transpose", _rms(g, x, scale), perm=[0, 2, 1])[0]
            window = g.input(f"past_conv.{i}", FLOAT, dims)
            kernel = g.constant("window", w["window"])
            mixed, left = g.op("CausalConvWithState", turned, kernel, None, window, domain=MICROSOFT, outputs=2)
            outputs[f"present_conv.{i}"] = left, dims
            (x,) = g.op("Add", x, g.op("Transpose", mixed, perm=[0, 2, 1])[0], name=f"tap{i}")
            continue
        past = [
            g.input(f"past_key_values.{i}.{part}", FLOAT, ["batch_size", KV_HEADS, "past_sequence_length", DIM])
            for part in ("key", "value")
        ]
        qkv = _linear(g, _rms(g, x, scale), g.constant(f"{i}.qkv", w[f"{i}.qkv"]))
        attended = g.op(
            "GroupQueryAttention", qkv, None, None, *past, lengths, total, cos, sin, domain=MICROSOFT, outputs=3,
            num_heads=HEADS, kv_num_heads=KV_HEADS, do_rotary=1,
        )  # fmt: skip
        for part, value in zip(("key", "value"), attended[1:], strict=True):
            outputs[f"present.{i}.{part}"] = value, ["batch_size", KV_HEADS, "total_sequence_length", DIM]
        (x,) = g.op("Add", x, _linear(g, attended[0], g.constant(f"{i}.o", w[f"{i}.o"])))
        (hidden,) = g.op("Relu", _linear(g, _rms(g, x, scale), g.constant(f"{i}.mlp", w[f"{i}.mlp"])))
        (x,) = g.op("Add", x, hidden, name=f"tap{i}")
    (start,) = g.op("Neg", keep)
    end = g.constant("end", np.array([2**62], np.int64))
    (kept,) = g.op("Slice", _rms(g, x, scale), start, end, axis)
    logits: dict[str, tuple[ir.Value, list[int | str]]] = {
        "logits": (_linear(g, kept, embed), ["batch_size", "logits_sequence_length", VOCABULARY])
    }
    return g.model({**logits, **outputs})


def _rms(g: GraphWriter, x: ir.Value, scale: ir.Value) -> ir.Value:
    return g.op("SimplifiedLayerNormalization", x, scale, epsilon=1e-5, axis=-1)[0]


def _linear(g: GraphWriter, x: ir.Value, weight: ir.Value) -> ir.Value:
    return g.op("FusedMatMul", x, weight, domain=MICROSOFT, transB=1)[0]


def write_bundle(path: Path, model: ir.Model, manifest: Manifest, vectors: dict[str, dict[str, np.ndarray]]) -> Bundle:
    """Commits a bundle with golden vectors by file name."""
    with BundleWriter(path, force=True) as writer:
        write_graph(model, writer.directory)
        (writer.directory / "vectors").mkdir()
        for name, arrays in vectors.items():
            save_file({key: np.ascontiguousarray(a) for key, a in arrays.items()}, writer.directory / name)
        if manifest.decoder is not None:
            write_tokenizer(writer.directory)
        return writer.commit(manifest)


def manifest(model: ir.Model, task: str, recipe: dict[str, object], **extra: Any) -> Manifest:
    """The least that a manifest needs."""
    infos = [
        tuple(TensorInfo(str(v.name), "float", tuple(str(d) for d in v.shape or ())) for v in values)
        for values in (model.graph.inputs, model.graph.outputs)
    ]
    return Manifest(
        schema_version=schema_version(extra.get("decoder")), task=task, name="tiny", architecture="Tiny", source="tests", recipe=recipe,
        inputs=infos[0], outputs=infos[1], nodes=len(model.graph), **extra,
    )  # fmt: skip


def recipe(**limits: float) -> dict[str, object]:
    """A resolved recipe with parity limits."""
    rule = {"match": "*", "format": "fp32"}
    return Recipe.from_dict({"version": 1, "name": "test", "rules": [rule], "parity": limits}).to_dict()


def text_ids(length: int = 40) -> np.ndarray:
    """Token ids int64 [1, T] that look like nothing in particular."""
    return np.random.default_rng(7).integers(0, 256, (1, length))


def text_vector(weights: Weights, ids: np.ndarray) -> dict[str, np.ndarray]:
    """A golden text vector whose two reference models are both ``reference``."""
    logits, taps = reference(weights, ids[0])
    peak = logits.max(-1, keepdims=True)
    total = (np.log(np.exp(logits - peak).sum(-1)) + peak[:, 0]).astype(np.float32)
    top = np.argsort(-logits, -1)[:, :16].astype(np.int32)
    rows = np.array([0, 5, 9], np.int32)
    answer = {
        "nll": (total[:-1] - logits[np.arange(len(logits) - 1), ids[0, 1:]]).astype(np.float32),
        "logsumexp": total,
        "top_indices": top,
        "top_values": np.take_along_axis(logits, top.astype(np.int64), -1),
        "logits": logits[-9:],
    }
    both = {f"{who}.{name}": a for who in ("original", "compressed") for name, a in answer.items()}
    return {
        "input.input_ids": ids, "tap_rows": rows, **both, **{f"tap.{name}": tap[rows] for name, tap in taps.items()},
    }  # fmt: skip


def decoder_bundle(
    path: Path,
    weights: Weights | None = None,
    graph_weights: Weights | None = None,
    kind: str = "text",
    **limits: float,
) -> Bundle:
    """A bundle whose vectors come from ``weights`` and whose graph holds ``graph_weights`` (the same by default)."""
    weights = weights or Weights()
    model = decoder_graph(graph_weights or weights)
    sizes = [(KV_HEADS, DIM) if weights.attends(i) else (0, 0) for i in range(LAYERS)]
    states = tuple(
        StateTensor(f"past_conv.{i}", f"present_conv.{i}", "float", (HIDDEN, weights.window - 1), "replaced")
        for i in range(LAYERS)
        if not weights.attends(i)
    )
    heads, dims = zip(*sizes, strict=True)
    info = DecoderInfo(LAYERS, heads, dims, VOCABULARY, MAX_LENGTH, 0.0, BOS, (EOS,), states)
    layers = tuple(
        Layer(f"layers.{i}.{name}", "fp32", 0, 32.0, (1, 1)) for i in range(LAYERS) for name in ("qkv", "o", "mlp")
    )
    taps = {f"layers.{i}": f"tap{i}" for i in range(LAYERS)}
    found = manifest(
        model, "text-generation", recipe(**(limits or {"max_abs": 1e-3})), decoder=info, layers=layers, taps=taps,
        vectors=(VectorInfo("vectors/text.safetensors", kind),),
    )  # fmt: skip
    return write_bundle(path, model, found, {"vectors/text.safetensors": text_vector(weights, text_ids())})


def write_tokenizer(directory: Path) -> None:
    """One token a byte, three special ones, and a chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.enable_truncation(8)  # as some files carry it; must have no effect
    tokenizer.save(str(directory / "tokenizer.json"))
    template = (
        "{{ bos_token }}{% for m in messages %}<user>{{ m.content }}{% endfor %}{{ '>' if add_generation_prompt }}"
    )
    config = {"bos_token": "<bos>", "eos_token": {"content": "<eos>"}, "add_bos_token": True, "chat_template": template}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
