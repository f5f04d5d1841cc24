"""A conversation on disk: its tokens and the key-value cache they left, to go on from another day.

The file is safetensors: ``tokens`` int64 [T], ``key.0``, ``value.0``, ... float32 [heads, L, head_dim] with L <= T, and
metadata: the format's version, the sha256 of the bundle's graph and weights, and the messages of a chat.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime.decoder import Decoder

VERSION = "1"
Messages = list[dict[str, str]]


@dataclass
class Saved:
    """What a file holds; the cache itself is read by :meth:`refill`."""

    path: Path
    tokens: list[int]
    length: int  # tokens whose keys and values are in the file
    messages: Messages = field(default_factory=list)  # empty for plain text

    def refill(self, decoder: Decoder, ids: Sequence[int]) -> int:
        """Gives ``decoder`` the cache of the longest beginning that ``ids`` shares with the saved text; its length.

        At least one token of ``ids`` is left to be fed. Raises UsageError for a damaged file.
        """
        most = min(self.length, len(ids) - 1)
        shared = next((i for i in range(most) if ids[i] != self.tokens[i]), most)
        with _open(self.path) as file:
            names = [n for i in range(decoder.info.layers) for n in (f"key.{i}", f"value.{i}")]
            decoder.refill({name: _tensor(file, name, self.path) for name in names}, shared)
        return shared


def read(path: Path, bundle: Bundle) -> Saved:
    """Opens a saved conversation for ``bundle``.

    Raises UsageError when the file is damaged, was made with another bundle, or its arrays do not fit the model.
    """
    info = bundle.manifest.decoder
    assert info is not None
    with _open(path) as file:
        facts = file.metadata() or {}
        if facts.get("edgekit.session") != VERSION:
            found = facts.get("edgekit.session", "none")
            raise UsageError(f"{path}: session version {found} found, {VERSION} expected; start anew with another file")
        if facts.get("bundle") != _identity(bundle):
            raise UsageError(
                f"{path}: was saved with another bundle than {bundle.directory}; use that one, or another file"
            )
        tokens = _tensor(file, "tokens", path)
        lengths = set()
        for layer, (heads, dim) in enumerate(zip(info.kv_heads, info.head_dim, strict=True)):
            for part in ("key", "value"):
                shape = _shape(file, f"{part}.{layer}", path)
                if len(shape) != 3 or (shape[0], shape[2]) != (heads, dim):
                    raise UsageError(
                        f"{path}: {part}.{layer} is {shape}, [{heads}, tokens, {dim}] expected; the file is damaged"
                    )
                lengths.add(shape[1])
    length = lengths.pop()
    valid = tokens.ndim == 1 and tokens.dtype == np.int64 and bool(((tokens >= 0) & (tokens < info.vocab_size)).all())
    if lengths or not valid or length > len(tokens) or length > info.max_length:
        raise UsageError(f"{path}: tokens and cache do not fit together; the file is damaged, start anew with another")
    return Saved(path, tokens.tolist(), length, _messages(facts, path))


def write(path: Path, decoder: Decoder, tokens: Sequence[int], messages: Messages) -> None:
    """Saves a text of which ``decoder`` holds the first ``decoder.length`` tokens; the file appears whole or not at all.

    Raises UsageError when it cannot be written.
    """
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in decoder.cache().items()}
    arrays["tokens"] = np.array(tokens, np.int64)
    facts = {"edgekit.session": VERSION, "bundle": _identity(decoder.bundle), "messages": json.dumps(messages)}
    part = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        save_file(arrays, part, facts)
        part.replace(path)
    except Exception as error:  # safetensors has errors of its own
        raise UsageError(
            f"{path}: the session cannot be saved ({str(error)[:100]}); make room or name another"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _identity(bundle: Bundle) -> str:
    """The sha256 of graph and weights."""
    return " ".join(f.sha256 for f in bundle.manifest.files if f.path in ("model.onnx", "model.onnx.data"))


def _open(path: Path) -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="np")
    except Exception as error:  # safetensors raises its own and the system's
        raise UsageError(
            f"{path}: no readable session ({str(error)[:100]}); delete it to start anew, or name another file"
        ) from error


def _tensor(file: Any, name: str, path: Path) -> np.ndarray:
    try:
        array: np.ndarray = file.get_tensor(name)
    except Exception as error:
        raise UsageError(f"{path}: holds no '{name}'; the file is damaged, start anew with another") from error
    if name != "tokens" and array.dtype != np.float32:
        raise UsageError(f"{path}: {name} is {array.dtype}, float32 expected; the file is damaged")
    return array


def _shape(file: Any, name: str, path: Path) -> list[int]:
    try:
        return list(file.get_slice(name).get_shape())
    except Exception as error:
        raise UsageError(f"{path}: holds no '{name}'; the file is damaged, start anew with another") from error


def _messages(facts: dict[str, str], path: Path) -> Messages:
    try:
        messages = json.loads(facts.get("messages", "[]"))
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(f"{path}: its messages are no chat; the file is damaged, start anew with another") from error
