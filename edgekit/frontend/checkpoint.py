"""The weight files of a Hugging Face directory, checked before any loader touches them.

A safetensors file is: header length (8 bytes, little-endian), header (JSON), data. Every size the header
states is checked against the file here, so a damaged download is named as such and not as a parser's inner error.
Format: https://huggingface.co/docs/safetensors (README, "Format").
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgekit.errors import SourceError, UnsupportedError
from edgekit.strict import parse_json, read_json

# bits of one element
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
# torch's name of the floating types in which a model can be loaded
_FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
AGAIN = "fetch the file again"
_MAX_HEADER = 100_000_000  # the safetensors library refuses longer ones too


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a header describes it: file and byte where it begins, its dtype in safetensors' spelling, its shape."""

    file: Path
    offset: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """Checked weight files. ``tensors`` is empty for pickles: they say nothing before they are read."""

    directory: Path
    files: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    pickled: bool = False

    @property
    def dtype(self) -> str:
        """torch's name of the floating dtype that holds most of the weights; "float32" if none does."""
        bits: dict[str, int] = {}
        for tensor in self.tensors.values():
            if tensor.dtype in _FLOATS:
                bits[tensor.dtype] = bits.get(tensor.dtype, 0) + _BITS[tensor.dtype] * prod(tensor.shape)
        return _FLOATS[max(bits, key=lambda name: bits[name])] if bits else "float32"


def open_checkpoint(directory: Path, *, allow_pickle: bool) -> Checkpoint:
    """Find and check the weight files of ``directory``: model.safetensors, its shards, or (if allowed) pickles.

    Raises:
        SourceError: none found, one missing, damaged, or only pickles and they are not allowed.
        UnsupportedError: an adapter, or weights in 8-bit floating point.
    """
    if (directory / "adapter_config.json").is_file():
        raise UnsupportedError(
            f"{directory}/adapter_config.json: an adapter, not a model; merge it into its base model "
            "(peft: merge_and_unload) and save that"
        )
    files = _weight_files(directory, "model.safetensors")
    if files is not None:
        return Checkpoint(directory, files, _checked_tensors(directory, files))
    pickles = _weight_files(directory, "pytorch_model.bin")
    if pickles is None:
        others = sorted(p.name for p in directory.iterdir() if p.is_file())[:8]
        raise SourceError(
            f"{directory}: no model.safetensors and no model.safetensors.index.json (found: {', '.join(others)}); "
            "save the model with transformers' save_pretrained"
        )
    if not allow_pickle:
        raise SourceError(
            f"{pickles[0]}: weights are a pickle, which can run code when opened; convert them to safetensors, "
            "or pass --allow-pickle to read them with weights_only=True"
        )
    return Checkpoint(directory, pickles, {}, pickled=True)


def read_header(path: Path) -> dict[str, StoredTensor]:
    """Tensors that a safetensors file holds, every stated size checked against the file.

    Raises:
        SourceError: truncated, or the header contradicts itself or the file; names file and tensor.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start.startswith(b"version "):
            raise SourceError(f"{path}: a git-lfs pointer, not the weights; run 'git lfs pull' in {path.parent}")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MAX_HEADER, size - 8):
            raise SourceError(
                f"{path}: header of {length} bytes in a file of {size}: truncated or no safetensors file; "
                "fetch it again"
            )
        text = file.read(length)
    try:
        entries = parse_json(text)
    except ValueError as error:
        raise SourceError(f"{path}: header is no valid JSON ({error}); fetch the file again") from None
    if not isinstance(entries, dict):
        raise SourceError(f"{path}: header is a {type(entries).__name__}, expected an object; fetch the file again")
    entries.pop("__metadata__", None)
    _check_layout(path, entries, size - 8 - length)
    return {
        name: StoredTensor(path, 8 + length + e["data_offsets"][0], e["dtype"], tuple(e["shape"]))
        for name, e in entries.items()
    }


def _check_layout(path: Path, entries: dict[str, Any], data: int) -> None:
    """Tensors must fill the data section exactly: no hole, no overlap, nothing beyond the end."""
    spans = sorted((*_span(path, name, entry), name) for name, entry in entries.items())
    position = 0
    for start, end, name in spans:
        if start != position:
            raise SourceError(
                f"{path}: tensor '{name}' starts at byte {start} of the data, expected {position}; fetch the file again"
            )
        position = end
    if position != data:
        state = "truncated" if position > data else "longer than its header says"
        raise SourceError(f"{path}: {state}: {data} bytes of tensor data, expected {position}; fetch the file again")


def _span(path: Path, name: str, entry: Any) -> tuple[int, int]:
    """Start and end of a tensor's bytes, once its entry agrees with itself."""
    entry = entry if isinstance(entry, dict) else {}
    shape, offsets, dtype = entry.get("shape"), entry.get("data_offsets"), entry.get("dtype")
    if dtype not in _BITS:
        raise SourceError(f"{path}: tensor '{name}': dtype {dtype!r} is not known; fetch the file again")
    if not _is_sizes(shape) or not _is_sizes(offsets) or len(offsets) != 2:
        raise SourceError(
            f"{path}: tensor '{name}': shape {shape} and data_offsets {offsets} are not lists of sizes; "
            "fetch the file again"
        )
    need, have = prod(shape) * _BITS[dtype] // 8, offsets[1] - offsets[0]
    if need != have:
        raise SourceError(
            f"{path}: tensor '{name}': {dtype} of shape {shape} takes {need} bytes, the header gives it {have}; "
            "fetch the file again"
        )
    return offsets[0], offsets[1]


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _weight_files(directory: Path, name: str) -> tuple[Path, ...] | None:
    """The single file, or the shards that its index names; None if neither is there."""
    if (directory / name).is_file():
        return (directory / name,)
    index = directory / f"{name}.index.json"
    if not index.is_file():
        return None
    files = []
    for shard in sorted(set(_weight_map(index).values())):
        if Path(shard).name != shard or shard in ("", ".", ".."):
            raise SourceError(f"{index}: shard '{shard}' is not a plain file name; the index is not to be trusted")
        if not (directory / shard).is_file():
            raise SourceError(f"{index}: shard '{shard}' is missing from {directory}; fetch it")
        files.append(directory / shard)
    return tuple(files)


def _weight_map(index: Path) -> dict[str, str]:
    names = read_json(index, SourceError, AGAIN).get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(v, str) for v in names.values()):
        raise SourceError(f"{index}: field weight_map is not a table of tensor names and files; fetch it again")
    return names


def _checked_tensors(directory: Path, files: Iterable[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        tensors.update(read_header(file))
    index = directory / "model.safetensors.index.json"
    if not (directory / "model.safetensors").is_file():
        for name, shard in _weight_map(index).items():
            if name not in tensors or tensors[name].file.name != shard:
                raise SourceError(f"{index}: tensor '{name}' is not in shard '{shard}'; fetch {shard} again")
    for name, tensor in tensors.items():
        if tensor.dtype.startswith("F8"):
            raise UnsupportedError(
                f"{tensor.file}: tensor '{name}' is stored as {tensor.dtype}; convert the checkpoint to bfloat16 first"
            )
    return tensors
