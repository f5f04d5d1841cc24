"""What the user named on the command line, opened."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from edgekit.errors import SourceError, UnsupportedError, UsageError
from edgekit.frontend.source import ModuleSource, Source
from edgekit.spec.names import TASKS

_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(@.+)?")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_FILE_SUFFIXES = (".gguf", ".onnx", ".pt2", ".safetensors", *_PICKLE_SUFFIXES)
_WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
# Other formats of the same weights that many repositories carry.
_UNWANTED = ("onnx/*", "openvino/*", "original/*", "consolidated*", "coreml/*")

log = logging.getLogger(__name__)


def load(spec: str, *, allow_pickle: bool = False, task: str | None = None) -> Source:
    """Opens ``spec``: an existing directory (Hugging Face layout), else an existing file (by its suffix), else
    ``package.module:factory[@weights.safetensors]``, and only then a Hugging Face hub id.

    ``allow_pickle`` also accepts pytorch_model.bin, read with ``weights_only=True``; ``task`` None is told by the
    model. Raises UsageError for a ``task`` that is none, SourceError where nothing is there or it is damaged,
    incomplete or ambiguous, UnsupportedError for what is readable, but of a kind that edgekit does not compile.
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
    from edgekit.frontend import huggingface

    directory = _download(spec, allow_pickle=allow_pickle)
    return huggingface.load(directory, allow_pickle=allow_pickle, task=task, name=spec)


def load_module(spec: str, *, allow_pickle: bool = False, task: str | None = None) -> ModuleSource:
    """As :func:`load`, for what needs a module with its layers; UnsupportedError for a file with a finished graph."""
    source = load(spec, allow_pickle=allow_pickle, task=task)
    if not isinstance(source, ModuleSource):
        raise UnsupportedError(
            f"{spec}: holds a finished graph; give the PyTorch model (a directory, .gguf or package.module:factory)"
        )
    return source


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
    beside = ""
    if path.parent.is_dir():
        names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith("."))[:5]
        beside = f"; {path.parent} holds {', '.join(names) or 'nothing'}"
    raise SourceError(
        f"{spec}: no such file or directory{beside}; give an existing path, a hub id 'owner/name' or a "
        "'package.module:factory'"
    )


def _download(hub_id: str, *, allow_pickle: bool) -> Path:
    """Directory of the newest snapshot of ``hub_id``; what the local cache already has is not fetched again.

    Raises SourceError when it cannot be fetched (offline, unknown, gated).
    """
    import huggingface_hub

    log.warning("'%s' is no file or directory here: taken for a Hugging Face hub id", hub_id)
    wanted = [*_WANTED, "*.bin"] if allow_pickle else list(_WANTED)
    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)))
    # Network stacks raise dozens of unrelated types (httpx, requests, OSError); all mean that it is not here.
    except Exception as error:
        raise SourceError(
            f"{hub_id}: no such file or directory here, and as a Hugging Face hub id it cannot be fetched "
            f"({_reason(error)}); go online, or copy the checkpoint to this machine and give its directory"
        ) from error


def _reason(error: Exception) -> str:
    name = type(error).__name__
    if name in ("RepositoryNotFoundError", "GatedRepoError", "HfHubHTTPError"):
        return f"{name}: unknown, private or gated; check the id and log in with 'hf auth login'"
    return "offline" if name in ("LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError") else name
