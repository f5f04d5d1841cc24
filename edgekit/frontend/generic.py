"""Encoders, vision models and any other module: through ``torch.onnx``, or as the ONNX file they already are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from edgekit.errors import UnsupportedError
from edgekit.frontend.inputs import Inputs, example, model_inputs
from edgekit.frontend.source import ExportedSource, OnnxSource, Source

IR_VERSION = 10


def build(source: Source, inputs: Inputs) -> ir.Model:
    """The graph of a module, an ExportedProgram or an ONNX file, before any pass; the batch is dynamic.

    A module is traced with ``inputs``. Raises UnsupportedError with torch's own words when tracing fails.
    """
    if isinstance(source, OnnxSource):
        model = ir.load(source.path)
    elif isinstance(source, ExportedSource):
        model = _export(source, source.program, (), {})
    else:
        module = source.module.float()
        batch = {name: torch.from_numpy(array) for name, array in example(source, inputs).items()}
        names = _output_names(_answer(source, module, batch))
        model = _export(source, module, [name or f"unnamed_{i}" for i, name in enumerate(names)], batch)
        _drop_unnamed(model.graph, names)
        _share_copies(model.graph)
    model.ir_version = min(model.ir_version, IR_VERSION) if model.ir_version > IR_VERSION else model.ir_version
    return model


def _export(source: Source, module: Any, names: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> ir.Model:
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": False}
    if inputs:
        options.update(kwargs=dict(inputs), dynamic_shapes=_dynamic(source, inputs), output_names=list(names))
    try:
        # It warns about its own internals and about a torchvision that nobody asked for.
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, (), **options)
    except Exception as error:  # torch raises many kinds
        cause = error.__cause__ or error  # torch's own advice to its users says nothing about the model
        words = str(cause).strip().splitlines() or [type(cause).__name__]
        raise UnsupportedError(f"{source.name}: torch.onnx cannot export it: {words[0][:200]}") from error
    assert program is not None
    return program.model


def _dynamic(source: Source, inputs: Mapping[str, torch.Tensor]) -> dict[str, dict[int, str]]:
    """The names of the axes of any size: the batch everywhere, the length of texts and of sound."""
    declared = {each.name: each.dims for each in model_inputs(source)}
    shapes = {}
    for name, tensor in inputs.items():
        sizes = declared.get(name) or (None, *tensor.shape[1:])
        free = [axis for axis, size in enumerate(sizes[: tensor.dim()]) if size is None]
        shapes[name] = {axis: ("batch_size", "sequence_length")[axis] for axis in free}
    return shapes


def _answer(source: Source, module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Any:
    """What the module answers. Raises UnsupportedError when it answers something else the second time."""
    with torch.no_grad():
        first, second = module(**inputs), module(**inputs)
    for one, other in zip(tree_leaves(first), tree_leaves(second), strict=True):
        if isinstance(one, torch.Tensor) and not torch.allclose(one, other, 1e-3, 1e-5, equal_nan=True):
            raise UnsupportedError(
                f"{source.name}: gives two answers to the same input, so something in its forward is drawn at random (masked "
                "patches, noise, dropout that is never off); take that out, a graph always answers alike"
            )
    return first


def _output_names(out: Any) -> list[str]:
    """A name for every tensor of an answer; one that is part of an output that is no tensor has none."""
    if isinstance(out, torch.Tensor):
        return ["output"]
    named = out.items() if isinstance(out, Mapping) else ((f"output_{i}", value) for i, value in enumerate(out))
    return [
        name
        for key, value in named
        for name in ([str(key)] if isinstance(value, torch.Tensor) else [""] * len(tree_leaves(value)))
    ]


def _drop_unnamed(graph: ir.Graph, names: Sequence[str]) -> None:
    """CLIP answers with all that its two encoders do, too, in outputs that are no tensors."""
    for index in reversed([i for i, name in enumerate(names) if not name]):
        del graph.outputs[index]


def _share_copies(graph: ir.Graph) -> None:
    """A layer that runs several times (ALBERT's) has got a folded, transposed copy of its weight each time."""
    first: dict[tuple[ir.DataType, tuple[int, ...], bytes], ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or len(tensor.shape) < 2 or value.is_graph_output():
            continue
        digest = sha256(tensor.tobytes()).digest()
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), digest), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            graph.initializers.pop(str(value.name))
