"""A traced decoder as ``onnx_ir.Model``: walks the FX graph once, in order."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder import aten, elementwise, experts, scan
from edgekit.frontend.decoder.emit import INT64_MAX, Constant, Emitter, onnx_type, shape_of
from edgekit.frontend.decoder.pending_views import View
from edgekit.frontend.decoder.tracing import TracedDecoder
from edgekit.lowbit.weights import RowWeight
from edgekit.spec.facts import facts_of
from edgekit.spec.names import CROSS_MASK, EDGEKIT, FEATURES, MICROSOFT
from edgekit.spec.records import DecoderInfo, EncoderInfo, StateTensor

HANDLERS = {**aten.HANDLERS, **elementwise.HANDLERS, **experts.HANDLERS, **scan.HANDLERS}
OPSETS = {"": 21, MICROSOFT: 1, EDGEKIT: 1}
IR_VERSION = 10  # the newest that ONNX Runtime 1.20 reads


def to_onnx(
    traced: TracedDecoder, activation_block_sizes: dict[str, int], streams: dict[int, RowWeight], max_length: int
) -> ir.Model:
    """Translates a traced decoder.

    ``activation_block_sizes`` names the linear layers whose activations are quantized by the model itself (BitNet).
    ``streams`` are the weights that placeholders stand for, by the placeholder's address.
    The result holds abstract ``ai.edgekit::Linear`` and ``Embedding`` nodes; weights are read when they are written.
    Raises UnsupportedError naming the torch operator and the module it stands in.
    """
    program = traced.program
    emitter = Emitter(sizes=_sizes(program), streams=streams)
    values = _placeholders(program, emitter, traced)
    needed = _needed(program)
    for node in program.graph.nodes:
        if node.op == "call_function" and node in needed:
            values[node] = _call(node, values, emitter, activation_block_sizes)
            if _in_place(node):
                _change(node, values, emitter)
    outputs = next(n for n in program.graph.nodes if n.op == "output").args[0]
    results = [values[o] for o in outputs]
    return _model(emitter, results, traced, max_length)


def _needed(program: ExportedProgram) -> set[torch.fx.Node]:
    """The nodes that an output or a tap depends on; models also compute masks and positions that nobody reads here."""
    changes: dict[torch.fx.Node, list[torch.fx.Node]] = {}  # of a tensor, made in it or in views of it
    for node in program.graph.nodes:
        if _in_place(node):
            for changed in _seen_through(node.args[0]):
                changes.setdefault(changed, []).append(node)
    pending = [n for n in program.graph.nodes if n.op == "output" or str(n.target) == "edgekit.tap.default"]
    needed: set[torch.fx.Node] = set()
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
            pending.extend(changes.get(node, ()))
    return needed


VIEWS = (
    "slice", "select", "view", "reshape", "_unsafe_view", "transpose", "t", "permute", "unsqueeze", "squeeze", "expand",
    "expand_as", "view_as", "flatten", "unflatten", "alias", "detach", "split", "split_with_sizes", "chunk", "unbind",
)  # fmt: skip
"""Operators whose result can be the same memory as their first argument."""


def _seen_through(node: Any) -> list[torch.fx.Node]:
    """A tensor and those that it is a view of, from the nearest to the farthest."""
    chain = [node]
    while chain[-1].op == "call_function":
        base = chain[-1].args[0] if "getitem" in str(chain[-1].target) else chain[-1]  # one of several results
        target = str(base.target)
        if not (target.startswith("aten.") and target.split(".")[1] in VIEWS):
            break
        chain.append(base.args[0])
    return chain


def _read_in(tensor: torch.fx.Node, without: torch.fx.Node | None, nodes: set[torch.fx.Node]) -> bool:
    """Whether one of ``nodes`` reads a tensor, itself or through a view of it other than ``without``."""
    for user in tensor.users:
        view = tensor in _seen_through(user)
        if user is not without and (user in nodes or (view and _read_in(user, None, nodes))):
            return True
    return False


def _change(node: torch.fx.Node, values: dict[torch.fx.Node, Any], emitter: Emitter) -> None:
    """Whoever reads a tensor after an operator changed it means the new one; through a slice its part of the whole is new.

    Raises UnsupportedError where another view is written, or would show the old numbers.
    """
    chain, places = _seen_through(node.args[0]), list(node.graph.nodes)
    part, after = chain[0], set(places[places.index(node) + 1 :])
    values[part] = values[node]
    if not any(_read_in(whole, through, after) for through, whole in pairwise(chain)):
        return
    whole = chain[1]
    stale = any(user is not part and user not in after and _read_in(user, None, after) for user in whole.users)
    if len(chain) > 2 or str(part.target) != "aten.slice.Tensor" or stale:
        raise UnsupportedError(f"{emitter.scope}: {node.target} changes a tensor through {part.target}")
    base, new = values[whole], values[node]
    given: list[Any] = list(part.args[1:])
    axis, start, end = (*given, *(0, 0, INT64_MAX)[len(given) :])[:3]
    values[whole] = aten.replace_part(emitter, whole, base, new, axis, start or 0, INT64_MAX if end is None else end)


def _in_place(node: torch.fx.Node) -> bool:
    """Whether a node changes its first argument, as ``aten.scatter_.value`` does."""
    return str(node.target).startswith("aten.") and str(node.target).split(".")[1].endswith("_")


def _symbol(tensor: torch.Tensor, axis: int) -> sympy.Expr:
    return shape_of(tensor)[axis]


def _sizes(program: ExportedProgram) -> dict[sympy.Expr, tuple[str, int]]:
    tensors = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    ids = tensors["input_ids"]
    sizes = {_symbol(ids, 0): ("input_ids", 0), _symbol(ids, 1): ("input_ids", 1)}
    sizes[_symbol(tensors["attention_mask"], 1)] = ("attention_mask", 1)
    return sizes


def _placeholders(program: ExportedProgram, emitter: Emitter, traced: TracedDecoder) -> dict[torch.fx.Node, Any]:
    names = ["input_ids", "attention_mask", "logits_to_keep"]
    names += [f"past_key_values.{i}.{part}" for i in traced.attending() for part in ("key", "value")]
    names += [f"past_{name}" for name in traced.states]
    if traced.cross:
        names += [CROSS_MASK, *(f"cross.{i}.{part}" for i in range(len(traced.cross)) for part in ("key", "value"))]
    if traced.features:
        names.append(FEATURES)
    users = iter(names)
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
    values: dict[torch.fx.Node, Any] = {}
    for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
        if spec.kind == InputKind.USER_INPUT:
            name = next(users)
            value = ir.Value(
                name=name,
                type=ir.TensorType(onnx_type(node.meta["val"].dtype)),
                shape=ir.Shape(_dims(name, node.meta["val"])),
            )
            emitter.inputs[name] = value
            left_out: dict[str, Any] = {
                "logits_to_keep": np.zeros(1, np.int64),
                FEATURES: np.zeros((0, traced.features), np.float32),
            }
            if name in left_out:  # an input that may be left out: ONNX Runtime then takes the initializer
                value.const_value = ir.tensor(left_out[name], name=name)
                emitter.initializers[name] = value
            values[node] = View(value, shape_of(node.meta["val"]))
        else:
            tensor = program.state_dict.get(spec.target)
            if tensor is None:
                tensor = program.constants[spec.target]
            values[node] = Constant(tensor, spec.target.removeprefix("model."))
    return values


def _dims(name: str, tensor: torch.Tensor) -> list[int | str]:
    """Sizes named as in Hugging Face's exports: transformers.js makes empty caches from these names."""
    if name.startswith("past_key_values"):
        return ["batch_size", int(tensor.shape[1]), "past_sequence_length", int(tensor.shape[3])]
    if name.startswith("past_"):
        return ["batch_size", *(int(size) for size in tensor.shape[1:])]
    if name.startswith("cross."):
        return ["batch_size", int(tensor.shape[1]), "encoder_sequence_length", int(tensor.shape[3])]
    if name == FEATURES:
        return ["image_rows", int(tensor.shape[1])]
    plain: dict[str, list[int | str]] = {
        CROSS_MASK: ["batch_size", "encoder_sequence_length"],
        "input_ids": ["batch_size", "sequence_length"],
        "attention_mask": ["batch_size", "total_sequence_length"],
        "logits_to_keep": [1],
    }
    return plain[name]


def _scope(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]).removeprefix("L['self'].").removeprefix("model").removeprefix(".") if paths else ""


def _in_router(node: torch.fx.Node) -> bool:
    """Whether a module that chooses experts computes it, itself or by a layer in it."""
    kinds = [str(kind) for _, kind in (node.meta.get("nn_module_stack") or {}).values()]
    return any(word in kind.rpartition(".")[2] for kind in kinds[-2:] for word in ("Router", "Gating"))


def _call(node: torch.fx.Node, values: dict[torch.fx.Node, Any], emitter: Emitter, blocks: dict[str, int]) -> Any:
    target = str(node.target)
    if target == "<built-in function getitem>":
        return values[node.args[0]][node.args[1]]  # type: ignore[index]
    if isinstance(node.meta.get("val"), torch.SymInt | int):
        return node.meta["val"] if isinstance(node.meta["val"], int) else node.meta["val"].node.expr
    args = [_argument(a, values) for a in node.args]
    operands = [o for a in args for o in (a if isinstance(a, list) else [a])]
    constant = any(isinstance(o, Constant) for o in operands) and not any(isinstance(o, View) for o in operands)
    if constant and not target.startswith("edgekit.") and not any(isinstance(o, sympy.Expr) for o in operands):
        return _fold(node, args, emitter)
    emitter.scope = _scope(node)
    node.meta["activation_block_size"] = blocks.get(emitter.scope, -1)
    node.meta["router"] = _in_router(node)
    if target not in HANDLERS:
        raise UnsupportedError(
            f"{emitter.scope or 'model'}: torch operator {target} has no ONNX translation in edgekit"
        )
    if not target.startswith("edgekit.") and target not in aten.READ_WEIGHTS:
        args = [View(emitter.weight(a), tuple(a.tensor.shape)) if isinstance(a, Constant) else a for a in args]
    return HANDLERS[target](emitter, node, args)


def _argument(argument: Any, values: dict[torch.fx.Node, Any]) -> Any:
    if isinstance(argument, torch.fx.Node):
        return values[argument]
    if isinstance(argument, list | tuple):
        return [_argument(a, values) for a in argument]
    return argument


def _fold(node: torch.fx.Node, args: list[Any], emitter: Emitter) -> Constant | list[Constant]:
    """Computes what depends on weights alone now; a view of a weight costs nothing."""

    def plain(argument: Any) -> Any:
        if isinstance(argument, list):
            return [plain(a) for a in argument]
        return emitter.values(argument) if isinstance(argument, Constant) else argument

    kwargs = {k: v for k, v in node.kwargs.items() if not isinstance(v, torch.fx.Node)}
    with torch.no_grad():
        tensor = node.target(*map(plain, args), **kwargs)  # type: ignore[operator]
    name = next(o.name for a in args for o in (a if isinstance(a, list) else [a]) if isinstance(o, Constant))
    if isinstance(tensor, tuple | list):  # split
        return [Constant(part, f"{name}.{node.name}.{place}") for place, part in enumerate(tensor)]
    return Constant(tensor, f"{name}.{node.name}")


def _model(emitter: Emitter, results: list[Any], traced: TracedDecoder, max_length: int) -> ir.Model:
    names = ["logits"] + [f"present.{i}.{part}" for i in traced.attending() for part in ("key", "value")]
    names += [f"present_{name}" for name in traced.states]
    shapes: list[list[int | str]] = [["batch_size", "logits_sequence_length", int(results[0].shape[2])]]
    caches = [traced.kv_shapes[i] for i in traced.attending()]
    shapes += [["batch_size", heads, "total_sequence_length", dim] for heads, dim in caches for _ in range(2)]
    shapes += [["batch_size", *dims] for dims in traced.states.values()]
    outputs = []
    for name, shape, view in zip(names, shapes, results, strict=True):
        value = emitter.read(view)
        value.name, value.shape, value.dtype = name, ir.Shape(shape), ir.DataType.FLOAT
        outputs.append(value)
    graph = ir.Graph(
        list(emitter.inputs.values()), outputs, nodes=emitter.nodes,
        initializers=list(emitter.initializers.values()), opset_imports=OPSETS, name="decoder",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="edgekit")
    facts = facts_of(model)
    heads, dims = zip(*traced.kv_shapes, strict=True)
    states = tuple(
        StateTensor(f"past_{name}", f"present_{name}", "float", dims, "replaced")
        for name, dims in traced.states.items()
    )
    crossed = [tuple(sizes) for sizes in zip(*traced.cross, strict=True)]
    facts.decoder = DecoderInfo(
        len(heads), heads, dims, int(results[0].shape[2]), max_length, traced.proof_error, states=states,
        encoder=EncoderInfo(crossed[0], crossed[1]) if crossed else None,
    )  # fmt: skip
    facts.taps = {layer: str(value.name) for layer, value in emitter.taps.items()}
    return model
