"""Encoders, vision models and any other module: through ``torch.onnx``, or as the ONNX file they already are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from edgekit.errors import UnsupportedError
from edgekit.frontend.inputs import TEXT_INPUTS, Inputs, example
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
        model = _export(source, module, _output_names(module, batch), batch)
    model.ir_version = min(model.ir_version, IR_VERSION) if model.ir_version > IR_VERSION else model.ir_version
    return model


def _export(source: Source, module: Any, names: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> ir.Model:
    options: dict[str, Any] = {"dynamo": True, "verbose": False, "external_data": False}
    if inputs:
        options.update(kwargs=dict(inputs), dynamic_shapes=_dynamic(inputs), output_names=list(names))
    try:
        # It warns about its own internals and about a torchvision that nobody asked for.
        logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(module, (), **options)
    except Exception as error:  # torch raises many kinds
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedError(f"{source.name}: torch.onnx cannot export it: {words[0][:200]}") from error
    assert program is not None
    return program.model


def _dynamic(inputs: Mapping[str, torch.Tensor]) -> dict[str, dict[int, Any]]:
    """Batch dynamic everywhere, sequence length too for text."""
    shapes: dict[str, dict[int, Any]] = {}
    for name, tensor in inputs.items():
        shapes[name] = {0: "batch_size"} if tensor.dim() else {}
        if name in TEXT_INPUTS:
            shapes[name][1] = "sequence_length"
    return shapes


def _output_names(module: nn.Module, inputs: Mapping[str, torch.Tensor]) -> list[str]:
    with torch.no_grad():
        out = module(**inputs)
    if isinstance(out, torch.Tensor):
        return ["output"]
    if isinstance(out, Mapping):
        return [str(key) for key, value in out.items() if isinstance(value, torch.Tensor)]
    return [f"output_{i}" for i in range(len(out))]
