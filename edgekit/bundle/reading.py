"""Reads a bundle that nobody vouches for: every path is confined, every size checked before it is used."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from edgekit.bundle.manifest import NAME, Manifest, VectorInfo
from edgekit.errors import BundleError

GRAPH = "model.onnx"
LARGEST_MANIFEST = 64 << 20
LARGEST_GRAPH = 1 << 30
FIELDS = {"location", "offset", "length", "checksum"}


@dataclass(frozen=True)
class Stored:
    """Where an initializer's bytes are."""

    file: str
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; ``directory`` holds what ``manifest`` lists and nothing it does not."""

    directory: Path
    manifest: Manifest
    _tensors: dict[str, Stored | np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(path: Path | str) -> Bundle:
        """Opens and validates a bundle; hashes are checked by :meth:`check_hashes`. Raises BundleError."""
        directory = Path(path)
        if not directory.is_dir():
            raise BundleError(f"{directory}: no such directory; give a bundle that `edgekit export -o` made")
        manifest_path = directory / NAME
        _regular(manifest_path, f"{directory}: no {NAME}; this is not an edgekit bundle")
        if manifest_path.stat().st_size > LARGEST_MANIFEST:
            raise BundleError(f"{manifest_path}: {manifest_path.stat().st_size:,} bytes; no manifest is that large")
        try:
            text = manifest_path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BundleError(f"{manifest_path}: not UTF-8 text; export or download the bundle again") from None
        manifest = Manifest.from_json(text, str(manifest_path))
        _check_files(directory, manifest)
        return Bundle(directory, manifest, _stored_tensors(directory, manifest))

    @property
    def graph_path(self) -> Path:
        """model.onnx."""
        return self.directory / GRAPH

    @property
    def nbytes(self) -> int:
        """Bytes of all listed files."""
        return sum(f.bytes for f in self.manifest.files)

    @property
    def model_bytes(self) -> int:
        """Bytes of the graph and its weights."""
        return sum(f.bytes for f in self.manifest.files if f.path.startswith("model.onnx"))

    def check_hashes(self) -> None:
        """Compares every file with its sha256. Raises BundleError naming the file."""
        from edgekit.bundle.writing import sha256

        for info in self.manifest.files:
            if sha256(self.directory / info.path) != info.sha256:
                raise BundleError(
                    f"{self.directory / info.path}: sha256 is not the manifest's; the file was changed, export or download again"
                )

    def vectors(self) -> list[tuple[VectorInfo, dict[str, np.ndarray]]]:
        """The golden vectors: for each file its arrays by name. Raises BundleError when one cannot be read."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        found = []
        for info in self.manifest.vectors:
            try:
                found.append((info, load_file(self.directory / info.file)))
            except (SafetensorError, OSError, ValueError) as error:
                raise BundleError(
                    f"{self.directory / info.file}: golden vector cannot be read ({str(error)[:100]}); export again"
                ) from None
        return found

    def tensor(self, name: str) -> np.ndarray:
        """An initializer by name, mapped from the data file (small ones are in the graph itself). Raises BundleError when there is none."""
        if name not in self._tensors:
            raise BundleError(
                f"{self.graph_path}: no initializer {name!r}; the manifest and the graph do not belong together"
            )
        stored = self._tensors[name]
        if isinstance(stored, np.ndarray):
            return stored
        if 0 in stored.shape:
            return np.empty(stored.shape, stored.dtype)
        return np.memmap(self.directory / stored.file, stored.dtype, "r", stored.offset, stored.shape)


def _regular(path: Path, missing: str) -> os.stat_result:
    try:
        found = path.lstat()
    except (OSError, ValueError):
        raise BundleError(missing) from None
    if stat.S_ISLNK(found.st_mode) or not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{path}: not a plain file (a link or a directory); bundles hold plain files only")
    if found.st_nlink > 1:
        raise BundleError(f"{path}: has {found.st_nlink} hard links; copy the bundle instead of linking it")
    return found


def confined(name: str, where: str) -> PurePosixPath:
    """A path as a manifest may hold it: relative, forward slashes, no ``..``. Raises BundleError."""
    path = PurePosixPath(name)
    bad = not name or "\\" in name or ":" in name or "\0" in name or path.is_absolute() or ".." in path.parts
    if bad or str(path) != name:
        raise BundleError(f"{where}: path {name[:120]!r} is not a plain relative path inside the bundle")
    return path


def _check_files(directory: Path, manifest: Manifest) -> None:
    where = str(directory / NAME)
    listed: set[str] = set()
    for info in manifest.files:
        path = confined(info.path, where)
        if info.path in listed:
            raise BundleError(f"{where}: {info.path!r} is listed twice")
        listed.add(info.path)
        for parent in list(path.parents)[:-1]:
            if (directory / parent).is_symlink():
                raise BundleError(f"{directory / parent}: is a link; bundles hold plain directories only")
        found = _regular(
            directory / info.path,
            f"{directory / info.path}: listed in the manifest and missing; export or download the bundle again",
        )
        if found.st_size != info.bytes:
            raise BundleError(
                f"{directory / info.path}: {found.st_size:,} bytes, the manifest says {info.bytes:,}; export or download again"
            )
    for vector in manifest.vectors:
        if vector.file not in listed:
            raise BundleError(f"{where}: vector {vector.file!r} is not among the listed files")
    if GRAPH not in listed:
        raise BundleError(f"{where}: {GRAPH} is not among the listed files")


def _stored_tensors(directory: Path, manifest: Manifest) -> dict[str, Stored | np.ndarray]:
    """The graph's initializers: small ones themselves, of external ones the place, proved to lie inside a listed file."""
    import onnx
    from google.protobuf.message import DecodeError

    path = directory / GRAPH
    sizes = {f.path: f.bytes for f in manifest.files}
    if sizes[GRAPH] > LARGEST_GRAPH:
        raise BundleError(f"{path}: {sizes[GRAPH]:,} bytes; weights belong into the data file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError, RuntimeError):
        raise BundleError(f"{path}: not a readable ONNX file; export or download the bundle again") from None
    found: dict[str, Stored | np.ndarray] = {}
    for tensor in _all_tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            found[tensor.name] = _stored(tensor, sizes, f"{path}: tensor {tensor.name!r}")
    for tensor in model.graph.initializer:
        if tensor.name not in found:
            try:
                found[tensor.name] = onnx.numpy_helper.to_array(tensor)
            except (ValueError, TypeError):
                raise BundleError(
                    f"{path}: tensor {tensor.name!r} does not hold what its shape says; the file is damaged"
                ) from None
    return found


def _all_tensors(model: Any) -> Any:
    """Every tensor of the model: initializers, and those in attributes, subgraphs and functions."""
    graphs, nodes = [model.graph], [n for f in model.functions for n in f.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            nodes.extend(graph.node)
            continue
        for attribute in nodes.pop().attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            if attribute.HasField("g"):
                graphs.append(attribute.g)
            graphs.extend(attribute.graphs)


def _stored(tensor: Any, sizes: dict[str, int], where: str) -> Stored:
    import onnx

    entries = {e.key: e.value for e in tensor.external_data}
    if len(entries) != len(tensor.external_data) or not entries.keys() <= FIELDS:
        raise BundleError(f"{where}: external data has repeated or unknown fields {sorted(entries)}")
    location = entries.get("location", "")
    confined(location, where)
    if location not in sizes:
        raise BundleError(f"{where}: external data in {location[:120]!r}, which the manifest does not list")
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", "-1"))
    except (ValueError, KeyError, TypeError):
        raise BundleError(f"{where}: offset, length or type is not a number edgekit knows") from None
    count = 1
    for dim in tensor.dims:
        if dim < 0 or dim > 1 << 40:
            raise BundleError(f"{where}: impossible size {dim}")
        count *= dim
    if offset < 0 or length != count * dtype.itemsize or offset + length > sizes[location]:
        raise BundleError(
            f"{where}: bytes {offset:,} to {offset + length:,} of {location} ({sizes[location]:,} bytes) for shape {json.dumps(list(tensor.dims))[:60]}; the file is damaged"
        )
    return Stored(location, offset, dtype, tuple(tensor.dims))
