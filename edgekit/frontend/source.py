"""What the user named on the command line, opened: one ``Source`` whatever the kind of file.

``load`` looks at the argument in a fixed order: an existing directory (Hugging Face layout), an existing
file (by its suffix), ``package.module:factory``, and only then a Hugging Face hub id.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.errors import SourceError, UsageError
from edgekit.spec.names import TASKS

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(@.+)?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_FILE_SUFFIXES = (".gguf", ".onnx", ".pt2", ".safetensors", *_PICKLE_SUFFIXES)


@dataclass(frozen=True)
class Source:
    """A model as it was found, not yet translated.

    Exactly one of ``module``, ``exported_program`` (with ``module`` made from it) and ``onnx_path`` says what
    there is to compile. Weights keep the dtype in which they were stored and, where the file allows it, stay
    memory-mapped.

    Attributes:
        kind: "hf", "gguf", "factory", "pt2" or "onnx".
        name: what to call the model: hub id, directory or file stem, or the factory's name.
        task: one of ``spec.names.TASKS``.
        architecture: class name of the model ("LlamaForCausalLM"), or "" where there is none.
        module: in eval mode, parameters without gradient. Linear layers that quantize their input in training
            carry the attribute ``activation_block_size`` (0 = per token, as BitNet does).
        exported_program: of a .pt2 file.
        onnx_path: of an .onnx file; its external data has been checked to lie beside it.
        config: the transformers configuration, or None.
        assets: tokenizer and generation files to carry into the bundle; they live as long as ``module``.
        example_inputs: by name of the forward argument; given by factories and .pt2 files only.
        directory: where the model's files are, or None.
        written_by: the transformers version that wrote config.json, or "".
    """

    kind: str
    name: str
    task: str
    architecture: str
    module: torch.nn.Module | None = None
    exported_program: ExportedProgram | None = None
    onnx_path: Path | None = None
    config: Any = None
    assets: tuple[Path, ...] = ()
    example_inputs: dict[str, torch.Tensor] | None = None
    directory: Path | None = None
    written_by: str = ""


def load(spec: str, *, allow_pickle: bool = False, task: str | None = None) -> Source:
    """Open ``spec``: a directory, a file, ``package.module:factory[@weights.safetensors]`` or a Hugging Face hub id.

    Args:
        spec: what to open.
        allow_pickle: also accept pickled weights (pytorch_model.bin), read with ``weights_only=True``.
        task: one of ``spec.names.TASKS``; None = found out from the model.

    Raises:
        UsageError: ``task`` is not one of ``spec.names.TASKS``.
        SourceError: nothing there, damaged, incomplete, or ambiguous; the message says what to do.
        UnsupportedError: readable, but of a kind that edgekit does not compile.
    """
    if task is not None and task not in TASKS:
        raise UsageError(f"task: '{task}' is not one of {', '.join(TASKS)}")
    path = Path(spec).expanduser()
    if path.is_dir():
        from edgekit.frontend import huggingface

        return huggingface.load(path, allow_pickle=allow_pickle, task=task)
    if path.is_file():
        return _load_file(path, allow_pickle=allow_pickle, task=task)
    if _FACTORY.fullmatch(spec):
        from edgekit.frontend import factory

        return factory.load(spec, task=task)
    _refuse_missing_path(spec, path)
    from edgekit.frontend import hub, huggingface

    directory = hub.download(spec, allow_pickle=allow_pickle)
    return huggingface.load(directory, allow_pickle=allow_pickle, task=task, name=spec)


def _load_file(path: Path, *, allow_pickle: bool, task: str | None) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        from edgekit.frontend import onnx_file

        return onnx_file.load(path, task=task)
    if suffix == ".pt2":
        from edgekit.frontend import exported

        return exported.load(path, task=task)
    if suffix == ".gguf":
        from edgekit.frontend import gguf_file

        return gguf_file.load(path, task=task)
    if (path.parent / "config.json").is_file() and suffix in (".safetensors", *_PICKLE_SUFFIXES):
        raise SourceError(f"{path}: one file of a Hugging Face checkpoint; give its directory, {path.parent}")
    if suffix == ".safetensors":
        raise SourceError(
            f"{path}: weights alone, without a config.json beside them, do not say what the model is; "
            "put its config.json there and give the directory, or load them in a 'package.module:factory'"
        )
    if suffix in _PICKLE_SUFFIXES:
        raise SourceError(
            f"{path}: a pickle holds weights but no architecture; with a config.json beside it give the directory "
            "and --allow-pickle, else load it with weights_only=True in a 'package.module:factory'"
        )
    raise SourceError(
        f"{path}: suffix '{suffix}' is not a model file; expected a Hugging Face directory, .gguf, .pt2 or .onnx"
    )


def _refuse_missing_path(spec: str, path: Path) -> None:
    """A string that looks like a path is never taken for a hub id."""
    parent = Path(spec).parent
    is_path = (
        spec.startswith((".", "/", "~", "\\"))
        or "\\" in spec
        or spec.endswith("/")
        or path.suffix.lower() in _FILE_SUFFIXES
        or (parent != Path(".") and parent.is_dir())
        or not _HUB_ID.fullmatch(spec)
    )
    if not is_path:
        return
    found = ""
    if path.parent.is_dir():
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))[:5]
        found = f"; {path.parent} holds {', '.join(names) or 'nothing'}"
    raise SourceError(
        f"{spec}: no such file or directory{found}; give an existing path, a hub id 'owner/name' or a "
        "'package.module:factory'"
    )
