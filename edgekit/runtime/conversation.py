"""A conversation on disk: what was said, and the key-value cache it left, to go on from another day.

The file is safetensors: ``cached`` int64 [L], the tokens whose keys and values follow: ``key.0``, ``value.0``, ...
float32 [heads, L, head_dim], states under their inputs' names; for plain text ``text`` int64 [T], its tokens. The metadata hold the format's version, the
sha256 of the bundle's graph and weights, and the messages of a chat.

What was said and what is cached are two things: of an answer the last token has not been fed, and a prompt that was
cancelled before its answer is cached, but was not said.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UsageError
from edgekit.runtime.decoder import Decoder, decoder_info
from edgekit.spec.names import DATA, GRAPH
from edgekit.strict import parse_json

VERSION = "1"
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Saved:
    """What a file holds but the cache itself, which :meth:`refill` reads."""

    messages: Messages | None  # None for plain text
    text: Sequence[int] = ()  # tokens of plain text
    cached: Sequence[int] = ()  # tokens whose keys and values are in the file
    path: Path | None = None  # None before it was saved

    def refill(self, decoder: Decoder, ids: Sequence[int]) -> int:
        """Gives ``decoder`` the cache of the longest beginning that ``ids`` shares with the cached tokens; its length.

        At least one token of ``ids`` is left to be fed. States are those after all cached tokens: where fewer are
        shared, none are, and all are computed anew.
        """
        most = min(len(self.cached), len(ids) - 1)
        shared = next((i for i in range(most) if ids[i] != self.cached[i]), most)
        if decoder.info.states and shared < len(self.cached):
            return 0
        if shared and self.path is not None:  # safetensors refuses empty slices
            with _open(self.path) as file:
                decoder.refill(lambda name: file.get_slice(name)[:], shared)
        return shared

    def write(self, path: Path, decoder: Decoder) -> None:
        """Saves it with the cache of ``decoder``, which holds ``cached``; the file appears whole or not at all.

        Raises UsageError when it cannot be written.
        """
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(array) for name, array in decoder.cache().items()}
        arrays["cached"] = np.array(self.cached, np.int64)
        facts = {"edgekit.session": VERSION, "bundle": _identity(decoder.bundle)}
        if self.messages is None:
            arrays["text"] = np.array(self.text, np.int64)
        else:
            facts["messages"] = json.dumps(self.messages)
        part = path.with_name(f".{path.name}.partial-{os.getpid()}")
        try:
            save_file(arrays, part, facts)
            part.replace(path)
        except Exception as error:  # safetensors has errors of its own
            raise UsageError(
                f"{path}: the session cannot be saved ({str(error)[:100]}); make room or name another"
            ) from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()


def read(path: Path, bundle: Bundle) -> Saved | None:
    """Opens a saved conversation for ``bundle``; None where there is no file yet.

    Raises UsageError when the file is damaged, was made with another bundle, or its arrays do not fit the model, or
    when there can be no file at ``path``.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no directory {path.parent}; make it, or name another file")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"{path}: the session cannot be saved there ({path.parent} is read-only); name another file")
    if not path.exists():
        return None
    with _open(path) as file:
        facts = file.metadata() or {}
        if facts.get("edgekit.session") != VERSION:
            version = facts.get("edgekit.session", "none")
            raise UsageError(
                f"{path}: session version {version} found, {VERSION} expected; start anew with another file"
            )
        if facts.get("bundle") != _identity(bundle):
            raise UsageError(
                f"{path}: was saved with another bundle than {bundle.directory}; use that one, or another file"
            )
        messages = _messages(facts, path)
        cached = _tokens(file, "cached", path, bundle)
        text = _tokens(file, "text", path, bundle) if messages is None else []
        _check_cache(file, len(cached), path, bundle)
    return Saved(messages, text, cached, path)


def _tokens(file: Any, name: str, path: Path, bundle: Bundle) -> list[int]:
    info = decoder_info(bundle)
    dtype, shape = _header(file, name, path)
    if dtype != "I64" or len(shape) != 1 or shape[0] > info.max_length:
        raise _damaged(path, f"{name} is {dtype} {shape}", f"I64 [tokens], at most {info.max_length}")
    tokens = file.get_tensor(name)
    if not bool(((tokens >= 0) & (tokens < info.vocab_size)).all()):
        raise _damaged(path, f"{name} goes from {tokens.min()} to {tokens.max()}", f"0 to {info.vocab_size - 1}")
    ids: list[int] = tokens.tolist()
    return ids


def _check_cache(file: Any, length: int, path: Path, bundle: Bundle) -> None:
    info = decoder_info(bundle)
    wanted = {".".join(reversed(name.split("."))): [heads, length, dim] for name, (heads, dim) in info.caches()}
    wanted |= {state.input: list(state.dims) for state in info.states}
    for name, expected in wanted.items():
        dtype, shape = _header(file, name, path)
        if (dtype, shape) != ("F32", expected):
            raise _damaged(path, f"{name} is {dtype} {shape}", f"F32 {expected}")


def _header(file: Any, name: str, path: Path) -> tuple[str, list[int]]:
    """An array's dtype, in safetensors' words, and shape."""
    if name not in file.keys():  # noqa: SIM118 (it is no dict)
        raise _damaged(path, f"no {name}", "an array of this name")
    array = file.get_slice(name)
    return array.get_dtype(), list(array.get_shape())


def _identity(bundle: Bundle) -> str:
    """The sha256 of graph and weights."""
    return " ".join(f.sha256 for f in bundle.manifest.files if f.path in (GRAPH, DATA))


def _open(path: Path) -> Any:
    from safetensors import safe_open

    try:
        return safe_open(path, framework="np")
    except Exception as error:  # safetensors raises its own and the system's
        raise UsageError(
            f"{path}: no readable session ({str(error)[:100]}); delete it to start anew, or name another file"
        ) from error


def _messages(facts: dict[str, str], path: Path) -> Messages | None:
    if "messages" not in facts:
        return None
    try:
        messages = parse_json(facts["messages"])
        return [{"role": str(m["role"]), "content": str(m["content"])} for m in messages]
    except (ValueError, TypeError, KeyError) as error:
        raise _damaged(path, "its messages are no chat", "a list of role and content") from error


def _damaged(path: Path, found: str, expected: str) -> UsageError:
    return UsageError(f"{path}: {found}, {expected} expected; the file is damaged, start anew with another")
