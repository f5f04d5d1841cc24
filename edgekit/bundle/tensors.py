"""The tensors of a graph that nobody vouches for: where each one's bytes are, proved before any is read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit.bundle.confinement import confined
from edgekit.errors import BundleError
from edgekit.spec.names import LARGEST_GRAPH

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto, TensorProto

MOST_DIMENSIONS = 32
LARGEST_DIMENSION = 1 << 40
FIELDS = {"location", "offset", "length", "checksum"}
# Types whose elements are packed into bytes, with their bits; all others fill whole bytes.
PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2}


@dataclass(frozen=True)
class Stored:
    """Where an initializer's bytes are: ``file`` of the bundle, ``offset`` in bytes.

    Elements of less than a byte are left packed: uint8 [bytes].
    """

    file: str
    offset: int
    length: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


def read_graph(path: Path) -> ModelProto:
    """Parses ``model.onnx``, without its external data. Raises BundleError."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size > LARGEST_GRAPH:
            raise BundleError(
                f"{path}: {path.stat().st_size:,} bytes, {LARGEST_GRAPH:,} at most; weights belong into the data file"
            )
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check the file's permissions") from None
    except (DecodeError, ValueError, RuntimeError):
        raise BundleError(f"{path}: not a readable ONNX file; export or download the bundle again") from None
    _check_text(model, path)
    return model


def initializers(model: ModelProto, path: Path, sizes: dict[str, int]) -> dict[str, Stored | np.ndarray]:
    """The initializers of the graph in ``path`` by name: small ones themselves, of external ones the place.

    Every tensor anywhere in the model is checked: ``sizes`` are the bytes of the files that may be referred to,
    external ranges lie inside them and are equal or apart, inline data fits its shape. Raises BundleError that names
    the tensor.
    """
    import onnx

    places: list[Stored] = []
    # Wherever the format allows one: attributes, subgraphs, functions, sparse tensors.
    for tensor in (message for message in _messages(model) if isinstance(message, onnx.TensorProto)):
        where = f"{path}: tensor {tensor.name[:120]!r}"
        _check_shape(tensor, where)
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            places.append(_stored(tensor, sizes, where))
        else:
            _inline(tensor, where)
    _check_apart(places, path)
    tensors: dict[str, Stored | np.ndarray] = {}
    for tensor in model.graph.initializer:
        where = f"{path}: tensor {tensor.name[:120]!r}"
        if tensor.name in tensors:
            raise BundleError(f"{where}: stands twice in the graph; the file is damaged")
        external = tensor.data_location == onnx.TensorProto.EXTERNAL
        tensors[tensor.name] = _stored(tensor, sizes, where) if external else _inline(tensor, where)
    return tensors


def _messages(top: Message) -> Iterator[Message]:
    """A message and all those below it."""
    waiting = [top]
    while waiting:
        current = waiting.pop()
        yield current
        for kind, value in current.ListFields():
            if kind.message_type is not None:
                waiting.extend([value] if kind.message_type is getattr(value, "DESCRIPTOR", None) else value)


def _check_text(model: ModelProto, path: Path) -> None:
    """Text that is not UTF-8 comes as bytes, which nobody expects."""
    for message in _messages(model):
        for kind, value in message.ListFields():
            texts = [value] if isinstance(value, str | bytes) else value
            if kind.type == kind.TYPE_STRING and any(isinstance(text, bytes) for text in texts):
                raise BundleError(f"{path}: a name in it is no UTF-8 text; export or download the bundle again")


def _check_shape(tensor: TensorProto, where: str) -> None:
    if len(tensor.dims) > MOST_DIMENSIONS:
        raise BundleError(f"{where}: {len(tensor.dims)} dimensions, {MOST_DIMENSIONS} at most; the file is damaged")
    for size in tensor.dims:
        if not 0 <= size <= LARGEST_DIMENSION:
            raise BundleError(f"{where}: impossible size {size}; the file is damaged")


def _inline(tensor: TensorProto, where: str) -> np.ndarray:
    import onnx

    try:
        return onnx.numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, NotImplementedError, OverflowError, MemoryError):
        raise BundleError(f"{where}: does not hold what its type and shape say; the file is damaged") from None


def _stored(tensor: TensorProto, sizes: dict[str, int], where: str) -> Stored:
    entries = {e.key: e.value for e in tensor.external_data}
    if len(entries) != len(tensor.external_data) or not entries.keys() <= FIELDS:
        raise BundleError(f"{where}: external data has repeated or unknown fields {sorted(entries)[:8]}")
    location = entries.get("location", "")
    confined(location, where)
    if location not in sizes:
        raise BundleError(f"{where}: external data in {location[:120]!r}, which the manifest does not list")
    dtype, bits = _element(tensor, where)
    offset, length = (_number(entries.get(key, ""), f"{where}: {key}") for key in ("offset", "length"))
    expected = -(-math.prod(tensor.dims) * bits // 8)
    if length != expected or offset + length > sizes[location]:
        raise BundleError(
            f"{where}: bytes {offset:,} to {offset + length:,} of {location} ({sizes[location]:,} bytes) "
            f"cannot hold the {expected:,} bytes of its shape; the file is damaged"
        )
    shape = tuple(tensor.dims) if bits >= 8 else (length,)
    return Stored(location, offset, length, dtype, shape)


def _element(tensor: TensorProto, where: str) -> tuple[np.dtype[Any], int]:
    """numpy type and bits of an element; strings and unknown types are refused (numpy would take them for pointers)."""
    import onnx

    try:
        name = onnx.TensorProto.DataType.Name(tensor.data_type)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (ValueError, KeyError, TypeError):
        name, dtype = str(tensor.data_type), np.dtype(object)
    if dtype.hasobject:
        raise BundleError(f"{where}: external data of type {name}; only numbers can be stored outside the graph")
    return (np.dtype(np.uint8), PACKED[name]) if name in PACKED else (dtype, 8 * dtype.itemsize)


def _number(text: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise BundleError(f"{where} {text[:40]!r} is not a whole number of bytes; the file is damaged")
    return int(text)


def _check_apart(places: list[Stored], path: Path) -> None:
    """Two tensors share all their bytes or none."""
    ranges = sorted({(p.file, p.offset, p.offset + p.length) for p in places if p.length})
    for (file, start, stop), (other, begin, end) in pairwise(ranges):
        if file == other and begin < stop:
            raise BundleError(
                f"{path}: two tensors overlap in {file} (bytes {start:,} to {stop:,} and {begin:,} to {end:,}); "
                "the file is damaged"
            )
