"""An existing ``.onnx`` file: what it points to is checked before anything follows the pointer.

Four CVEs were about external data that leaves the model's directory ("..", then "a/../../b", then symlinks, then
hard links), so the rule here is the plain one: every location is a relative path below the directory, no part of it
a link, and offset + length within the file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from edgekit.errors import SourceError
from edgekit.frontend import assets
from edgekit.frontend.config_file import read_config
from edgekit.frontend.source import ModelInput, OnnxSource


def load(path: Path, *, task: str | None = None) -> OnnxSource:
    """Checks an ONNX file; its weights are not read.

    A config.json beside it (as optimum writes) gives the architecture; tokenizer files beside it are assets. Raises
    SourceError for what is no ONNX, or external data that is missing, truncated or outside the directory.
    """
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise SourceError(f"{path}: not an ONNX file, or truncated ({error}); export it again") from error
    if not model.graph.node:
        raise SourceError(f"{path}: the graph is empty: not an ONNX file, or truncated; export it again")
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            _check_external(path, tensor)
    config = path.parent / "config.json"
    raw = read_config(config) if config.is_file() else {}
    names = raw.get("architectures") or [""]
    files, _ = assets.collect(path.parent, text=False)
    return OnnxSource(
        name=path.stem if path.stem != "model" else path.resolve().parent.name,
        task=task or "generic",
        architecture=str(names[0]),
        path=path,
        inputs=tuple(_declared(model.graph)),
        assets=files,
    )


def _declared(graph: onnx.GraphProto) -> Iterator[ModelInput]:
    weights = {tensor.name for tensor in graph.initializer}  # older files list these among the inputs
    for value in graph.input:
        kind = value.type.tensor_type
        if value.name in weights:
            continue
        try:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
        except KeyError:  # a sequence, a map, an optional
            dtype = ""
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
        yield ModelInput(value.name, dtype, dims if dtype and kind.HasField("shape") else None)


def _tensors(message: Any) -> Iterator[Any]:
    """Every TensorProto in a model: initializers, attributes, sub-graphs, function bodies."""
    pending = [message]
    while pending:
        item = pending.pop()
        if isinstance(item, onnx.TensorProto):
            yield item
            continue
        for field, value in item.ListFields():
            if field.type == field.TYPE_MESSAGE:
                pending.extend(value if field.is_repeated else [value])


def _check_external(path: Path, tensor: Any) -> None:
    where = f"{path}: external data of tensor '{tensor.name}'"
    info = {entry.key: entry.value for entry in tensor.external_data}
    location = info.get("location", "")
    parts = PurePosixPath(location).parts
    strange = location.startswith(("/", "*")) or "\\" in location or PureWindowsPath(location).drive
    if not parts or ".." in parts or strange:
        raise SourceError(f"{where}: location '{location}' is not a path below {path.parent}; do not trust this file")
    current = path.parent
    for part in parts:
        current = current / part
        if current.is_symlink():
            raise SourceError(f"{where}: '{location}' goes through the link {current}; copy the real file there")
    try:
        state = os.stat(current)
    except OSError as error:
        raise SourceError(f"{where}: '{location}' is missing from {path.parent}; copy it there") from error
    if not stat.S_ISREG(state.st_mode) or state.st_nlink > 1:
        raise SourceError(f"{where}: '{location}' is not a plain file with one name (hard links); copy it")
    try:
        offset, length = int(info.get("offset", 0)), int(info.get("length", 0))
    except ValueError as error:
        raise SourceError(f"{where}: offset and length are not numbers ({error}); export the model again") from error
    if offset < 0 or length < 0 or offset + length > state.st_size:
        raise SourceError(
            f"{where}: bytes {offset} to {offset + length} of '{location}', which has {state.st_size}; "
            "the file is truncated, fetch it again"
        )
