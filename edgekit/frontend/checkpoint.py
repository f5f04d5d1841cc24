"""The weight files of a Hugging Face directory, checked before any loader touches them; pickled ones never run code.

A safetensors file is: header length (8 bytes, little-endian), header (JSON), data. Every size the header
states is checked against the file here, so a damaged download is named as such and not as a parser's inner error.
Format: https://huggingface.co/docs/safetensors (README, "Format").
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

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
# weights_only=True itself could be made to run code up to 2.9.1 (CVE-2025-32434, CVE-2026-24747).
_FIRST_SAFE_TORCH = (2, 10)


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as a header describes it: file and byte where it begins, dtype in safetensors' spelling, shape."""

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
    """Finds and checks the weight files of ``directory``: model.safetensors, its shards, or (if allowed) pickles.

    Raises SourceError when none is found, one is missing or damaged, or there are only pickles and they are not
    allowed; UnsupportedError for an adapter, or weights in 8-bit floating point.
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

    Raises SourceError, naming file and tensor, when it is truncated or its header contradicts itself or the file.
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


def unpickled(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """The tensors of pickled state dicts, by ``torch.load(weights_only=True)`` and nothing else.

    Raises SourceError for a file that is damaged or holds anything but named tensors, UnsupportedError for a torch
    older than 2.10.
    """
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < _FIRST_SAFE_TORCH:
        raise UnsupportedError(
            f"torch {torch.__version__}: reading pickles is not safe before 2.10; upgrade torch or use safetensors"
        )
    state: dict[str, torch.Tensor] = {}
    for file in files:
        state.update(_one(file))
    return state


def _one(file: Path) -> dict[str, torch.Tensor]:
    is_zip = zipfile.is_zipfile(file)
    if is_zip and any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(file).namelist()):
        raise SourceError(f"{file}: a TorchScript archive, not a state dict; save module.state_dict() as safetensors")
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    # Never a second try without weights_only: an error here is how an attack looks.
    except Exception as error:
        raise SourceError(
            f"{file}: holds more than tensors, or is damaged (torch.load(weights_only=True): {type(error).__name__}); "
            "edgekit never opens such a pickle; save module.state_dict() as safetensors"
        ) from error
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in loaded.items()
    ):
        raise SourceError(
            f"{file}: holds a {type(loaded).__name__} that is no table of named tensors; save module.state_dict()"
        )
    return dict(loaded)
