"""Encoders, vision models and any other module: through ``torch.onnx``, or as the ONNX file they already are."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import nn

from edgekit.errors import SourceError, UnsupportedError
from edgekit.frontend.samples import Inputs, arrays, photos, sentence_batches
from edgekit.frontend.source import ExportedSource, OnnxSource, Source

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
IR_VERSION = 10


def build(source: Source, samples: Path | None = None) -> ir.Model:
    """The graph of a module, an ExportedProgram or an ONNX file, before any pass; the batch is dynamic.

    Raises SourceError when there is no input to trace with, UnsupportedError with torch's own words when tracing fails.
    """
    if isinstance(source, OnnxSource):
        model = ir.load(source.path)
    elif isinstance(source, ExportedSource):
        model = _export(source, source.program, (), {})
    else:
        module = source.module.float()
        inputs = {name: torch.from_numpy(array) for name, array in example(source, samples).items()}
        names = _output_names(module, inputs)
        model = _export(source, module, names, inputs)
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


def example(source: Source, samples: Path | None) -> Inputs:
    """One batch to trace with: the user's own inputs, or real ones of the model's kind; at least 2 in the batch."""
    if not isinstance(source, OnnxSource) and source.example_inputs:
        return {name: _two(tensor.numpy()) for name, tensor in source.example_inputs.items()}
    return {name: _two(array) for name, array in batches(source, samples)[0].items()}


def _two(array: np.ndarray) -> np.ndarray:
    """torch.export takes a batch of one for a constant."""
    return np.concatenate([array, array]) if array.ndim and array.shape[0] == 1 else array


def batches(source: Source, samples: Path | None) -> list[Inputs]:
    """Real inputs for golden vectors and calibration. Raises SourceError when none can be made."""
    if samples is not None and samples.suffix == ".npz":
        return arrays(samples)
    names = _input_names(source)
    if "input_ids" in names:
        return sentence_batches(source.assets, samples, names)
    images = [name for name, shape in _shapes(source).items() if len(shape) == 4 and shape[1] == 3]
    if len(images) == 1:
        size = _shapes(source)[images[0]][2:]
        pixels = photos(samples, (int(size[0]), int(size[1])), _directory(source))
        return [{images[0]: pixels[i : i + 1]} for i in range(len(pixels))]
    if not isinstance(source, OnnxSource) and source.example_inputs:
        return [{name: tensor.numpy() for name, tensor in source.example_inputs.items()}]
    raise SourceError(
        f"{source.name}: no real input is known for inputs {', '.join(names)}; give --samples inputs.npz with arrays of these names"
    )


def calibration(source: Source, samples: Path | None, count: int) -> list[Inputs]:
    """Up to ``count`` inputs to find activation ranges with; pictures also mirrored and cropped, for there are few."""
    given = batches(source, samples)
    pictures = all(len(a.shape) == 4 and a.dtype == np.float32 for one in given for a in one.values())
    if pictures:
        given = [*given, *({n: variant(a) for n, a in one.items()} for variant in VARIANTS for one in given)]
    return given[:count]


def _cropped(images: np.ndarray, share: float, bottom: bool, right: bool) -> np.ndarray:
    """A corner of float32 [B, C, H, W], ``share`` of each side, blown up again to the full size."""
    height, width = images.shape[2:]
    rows, columns = ((np.arange(size) * share).astype(int) for size in (height, width))
    rows = rows + (height - 1 - rows[-1]) * bottom
    columns = columns + (width - 1 - columns[-1]) * right
    return np.ascontiguousarray(images[:, :, rows][:, :, :, columns])


def _mirrored(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[..., ::-1])


VARIANTS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    _mirrored,
    *(partial(_cropped, share=s, bottom=b, right=r) for s in (0.8, 0.6) for b in (False, True) for r in (False, True)),
)


def kind(source: Source, samples: Path | None) -> str:
    """ "sample" for real input; "random" when only a factory's example input was there."""
    real = (
        samples is not None
        or "input_ids" in _input_names(source)
        or any(len(s) == 4 and s[1] == 3 for s in _shapes(source).values())
    )
    return "sample" if real else "random"


def _input_names(source: Source) -> list[str]:
    if isinstance(source, OnnxSource):
        return list(_shapes(source))
    if source.example_inputs or isinstance(source, ExportedSource):
        return list(source.example_inputs)
    parameters = inspect.signature(source.module.forward).parameters
    if "input_ids" in parameters:
        kinds = int(getattr(source.config, "type_vocab_size", 0) or 0)
        return [n for n in TEXT_INPUTS if n in parameters and (n != "token_type_ids" or kinds > 1)]
    return ["pixel_values"] if "pixel_values" in parameters else list(parameters)


def _shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """Input shapes where they are known; symbolic sizes count as 0."""
    if isinstance(source, OnnxSource):
        graph = ir.load(source.path).graph
        return {str(v.name): tuple(d if isinstance(d, int) else 0 for d in v.shape or ()) for v in graph.inputs}
    if source.example_inputs or isinstance(source, ExportedSource):
        return {name: tuple(tensor.shape) for name, tensor in source.example_inputs.items()}
    size = getattr(source.config, "image_size", None)
    if size is None:
        return {}
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": (1, int(getattr(source.config, "num_channels", 3)), int(height), int(width))}


def _directory(source: Source) -> Path | None:
    if isinstance(source, OnnxSource):
        return source.path.parent
    return source.directory if not isinstance(source, ExportedSource) else None
