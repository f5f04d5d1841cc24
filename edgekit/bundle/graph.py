"""Writes the graph and its weights, one tensor in memory at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from edgekit.errors import CheckFailed
from edgekit.spec.names import DATA, GRAPH, STORAGE
from edgekit.spec.progress import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

PAGE = 4096
"""External data starts at multiples of this, so that a reader can map each tensor by itself."""
SMALLEST_EXTERNAL = 1024
TRACE = "pkg.torch.onnx.stack_trace"
"""Metadata of nodes that names source files of the machine that exported: it stays there."""
RESERVE = 64 << 20
"""Bytes that must stay free on the disk beside the weights: graph, vectors, tokenizer."""


def write_graph(model: ir.Model, directory: Path, progress: Progress = lambda what, share: None) -> None:
    """Writes ``model.onnx`` and ``model.onnx.data`` into ``directory``; initializers then refer to the file.

    Initializers of 1 KiB and more, also of subgraphs, go to the data file at page-aligned offsets. A tensor is read
    once, written and dropped. Initializers that share a tensor object, or whose tensors' ``meta["edgekit.storage"]``
    are equal, are written once. Raises CheckFailed when the disk has no room.
    """
    import onnx_ir as ir

    values = _external_values(model)
    sizes = {_key(tensor): -(-tensor.nbytes // PAGE) * PAGE for _, tensor in values}
    total = sum(sizes.values())
    check_room(directory, total + RESERVE)
    written: dict[object, tuple[int, int]] = {}
    with (directory / DATA).open("wb") as file:
        for value, tensor in values:
            key = _key(tensor)
            if key not in written:
                written[key] = _append(tensor, file)
                progress(f"write {file.tell() / 1e6:,.0f} of {total / 1e6:,.0f} MB: {value.name}", file.tell() / total)
            offset, length = written[key]
            shape = ir.Shape([int(d) for d in tensor.shape.numpy()])
            value.const_value = ir.ExternalTensor(
                DATA, offset, length, tensor.dtype, shape=shape, name=value.name or "", base_dir=directory
            )
        file.flush()
        graphs: list[ir.Graph | ir.Function] = [model.graph, *model.functions.values()]
        for graph in graphs:
            for node in graph.all_nodes():
                node.metadata_props.pop(TRACE, None)
        ir.save(model, directory / GRAPH)


def _external_values(model: ir.Model) -> list[tuple[ir.Value, ir.TensorProtocol]]:
    import onnx_ir as ir

    weights = []
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING or tensor.nbytes < SMALLEST_EXTERNAL:
                continue
            weights.append((value, tensor))
    return weights


def _key(tensor: ir.TensorProtocol) -> object:
    return getattr(tensor, "meta", {}).get(STORAGE, id(tensor))


def _append(tensor: ir.TensorProtocol, file: IO[bytes]) -> tuple[int, int]:
    """Writes a tensor's bytes at the next page; returns their offset and length."""
    offset = -(-file.tell() // PAGE) * PAGE
    file.seek(offset)
    # What numpy holds goes to the file as it is; only elements of less than a byte are packed first.
    if tensor.dtype.bitwidth < 8:
        file.write(tensor.tobytes())
    else:
        file.write(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
    length = file.tell() - offset
    if length != tensor.nbytes:
        raise ValueError(f"{tensor.name}: {length} bytes came, {tensor.nbytes} are its shape's")
    return offset, length


def check_room(directory: Path, needed: int) -> None:
    """Raises CheckFailed when the disk of ``directory`` has less than ``needed`` bytes free."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckFailed(
            f"{directory.parent}: {needed:,} bytes needed for the bundle, {free:,} free; make room or give another -o"
        )
