"""``.pt2`` files (``torch.export.save``), checked before torch opens them.

``torch.export.load`` runs what a hostile file tells it to, in five ways (read in torch 2.13): tensor payloads marked
``use_pickle`` and custom objects are unpickled, sample inputs fall back from ``weights_only=True`` to a full unpickle,
AOTInductor packages are shared libraries, symbolic shapes are given to sympy's ``eval``, and guards are ``exec``-ed.
An ordinary file needs none of that, so a file that does is refused, with no flag to allow it.
"""

from __future__ import annotations

import ast
import io
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from edgekit.errors import SourceError, one_line
from edgekit.frontend.inputs import plain
from edgekit.frontend.source import ExportedSource, ModelInput
from edgekit.strict import parse_json

_AGAIN = "export it again with torch.export.save of torch 2.9 or newer"
_TARGETS = re.compile(r"torch\.ops\.[\w.]+|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\._check\w*")
_STRING = re.compile(r"[A-Za-z]\w*|[-+.\deE]+")
_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Load, ast.Constant, ast.keyword, ast.BinOp, ast.UnaryOp, ast.Compare,
    ast.BoolOp, ast.Tuple, ast.operator, ast.unaryop, ast.cmpop, ast.boolop,
)  # fmt: skip


def load(path: Path, *, task: str | None = None) -> ExportedSource:
    """Opens an ExportedProgram; its inputs get the names of the exported forward's arguments.

    Raises SourceError when it is damaged, without sample inputs, of an older format, or holds more than a graph and
    tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check(path, archive)
    # What zipfile says of encrypted, misplaced and otherwise impossible entries.
    except (zipfile.BadZipFile, RuntimeError, ValueError, OSError, EOFError) as error:
        raise SourceError(f"{path}: truncated or not a .pt2 archive ({error}); {_AGAIN}") from error
    try:
        program = torch.export.load(path)
    except Exception as error:
        raise SourceError(
            f"{path}: torch {torch.__version__} cannot load it ({type(error).__name__}: {one_line(error)}); {_AGAIN}"
        ) from error
    program._guards_code = []  # module() would exec them
    inputs = _example_inputs(path, program)
    module = _ByName(program, list(inputs))
    return ExportedSource(path.stem, task or "generic", program, module, _declared(program, inputs), inputs)


def _declared(program: ExportedProgram, examples: Mapping[str, torch.Tensor]) -> tuple[ModelInput, ...]:
    """What the graph takes: a size that was not exported as dynamic is fixed."""
    shapes = {node.name: node.meta["val"].shape for node in program.graph.nodes if node.name in examples}
    return tuple(
        ModelInput(name, tensor.numpy().dtype.name, tuple(d if isinstance(d, int) else None for d in shapes[name]))
        for name, tensor in examples.items()
    )


class _ByName(nn.Module):
    """A program that takes each input by its name in the graph, however it was exported: by position or keyword."""

    def __init__(self, program: ExportedProgram, names: Sequence[str]) -> None:
        super().__init__()
        assert program.example_inputs is not None
        args, kwargs = program.example_inputs
        self._program = program.module()
        self._positional, self._keywords = names[: len(args)], dict(zip(kwargs, names[len(args) :], strict=True))

    def forward(self, **inputs: torch.Tensor) -> Any:
        keywords = {keyword: inputs[name] for keyword, name in self._keywords.items()}
        return self._program(*(inputs[name] for name in self._positional), **keywords)


def _check(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse whatever would make torch run code from the file."""
    names = archive.namelist()
    squeezed = next((i.filename for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED), None)
    if squeezed is not None:
        raise SourceError(
            f"{path}: entry '{squeezed}' is compressed, torch.export.save stores them as they are; {_AGAIN}"
        )
    damaged = archive.testzip()
    if damaged is not None:
        raise SourceError(f"{path}: entry '{damaged}' is damaged; fetch the file again")
    entries = {name.partition("/")[2]: name for name in names}
    if "archive_format" not in entries:
        raise SourceError(f"{path}: no entry archive_format: no .pt2 archive, or of torch 2.7 or older; {_AGAIN}")
    for entry, name in entries.items():
        folder, _, file = entry.rpartition("/")
        if folder.startswith("data/aotinductor"):
            raise SourceError(f"{path}: '{entry}' is compiled code (AOTInductor), which edgekit never runs; {_AGAIN}")
        if folder in ("data/weights", "data/constants") and file.endswith(".json"):
            _check_payload(path, entry, _json(path, entry, archive.read(name)))
        elif folder in ("data/weights", "data/constants") and not re.fullmatch(r"(weight|tensor)_\d+", file):
            raise SourceError(f"{path}: '{entry}' is a pickled object; keep only tensors in the module; {_AGAIN}")
        elif folder == "data/sample_inputs":
            _check_sample(path, entry, archive.read(name))
        elif folder == "models" and file.endswith(".json"):
            _check_graph(path, entry, _json(path, entry, archive.read(name)))


def _json(path: Path, entry: str, content: bytes) -> dict[str, Any]:
    try:
        value = parse_json(content, infinite=True)
    except ValueError as error:
        raise SourceError(f"{path}: '{entry}' is no valid JSON ({error}); {_AGAIN}") from None
    if not isinstance(value, dict):
        raise SourceError(f"{path}: '{entry}' holds a {type(value).__name__}, expected an object; {_AGAIN}")
    return value


def _check_payload(path: Path, entry: str, value: dict[str, Any]) -> None:
    tensors = value.get("config", {})
    for tensor, meta in tensors.items() if isinstance(tensors, dict) else [("config", None)]:
        if not isinstance(meta, dict):
            raise SourceError(f"{path}: '{entry}': '{tensor}' is no description of a tensor; {_AGAIN}")
        if meta.get("use_pickle"):
            raise SourceError(
                f"{path}: '{entry}': '{tensor}' is pickled (a tensor subclass); turn it into a plain tensor; {_AGAIN}"
            )


def _check_sample(path: Path, entry: str, content: bytes) -> None:
    try:
        if content:
            torch.load(io.BytesIO(content), weights_only=True)
    except Exception as error:
        raise SourceError(
            f"{path}: '{entry}' holds more than tensors and would run code; use plain tensors as inputs; {_AGAIN}"
        ) from error


def _check_graph(path: Path, entry: str, value: Any) -> None:
    for key, text in _strings(value):
        if key == "target" and not _TARGETS.fullmatch(text):
            raise SourceError(
                f"{path}: '{entry}': node target '{text[:80]}' is not an operator; do not trust this file"
            )
        if key == "expr_str" and not _is_arithmetic(text):
            raise SourceError(f"{path}: '{entry}': size '{text[:80]}' is not arithmetic; do not trust this file")


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """(key, text) of every string that is a field of a JSON object."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield from ((key, text) for key, text in item.items() if isinstance(text, str))
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


def _is_arithmetic(text: str) -> bool:
    """Symbols, numbers and calls of named functions only; strings may not hold anything that sympy would parse."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return len(text) < 10_000 and all(
        isinstance(node, _NODES)
        and not (isinstance(node, ast.Name) and "_" in node.id and "__" in node.id)
        and not (isinstance(node, ast.Call) and not isinstance(node.func, ast.Name))
        and not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.func.id[:1].isupper())
        and not (isinstance(node, ast.Constant) and isinstance(node.value, str) and not _STRING.fullmatch(node.value))
        for node in nodes
    )


def _example_inputs(path: Path, program: ExportedProgram) -> dict[str, torch.Tensor]:
    if program.example_inputs is None:
        raise SourceError(f"{path}: exported without sample inputs; {_AGAIN}")
    args, kwargs = program.example_inputs
    values = [*args, *kwargs.values()]
    names = list(program.graph_signature.user_inputs)
    if len(values) != len(names) or not all(isinstance(v, torch.Tensor) for v in values):
        raise SourceError(f"{path}: takes nested or non-tensor inputs ({len(names)} in the graph); pass tensors only")
    return plain(str(path), dict(zip((str(name) for name in names), values, strict=True)))
