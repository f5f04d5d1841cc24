"""A ``.gguf`` file, read by transformers: its weights are dequantized, so "original" means what the file holds."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import transformers

from edgekit.errors import SourceError, UnsupportedError, one_line
from edgekit.frontend import assets
from edgekit.frontend.source import ModuleSource

MAGIC = b"GGUF"
NEEDED = ("gguf", "accelerate")


def load(path: Path, *, task: str | None = None) -> ModuleSource:
    """Loads the language model in a GGUF file; weights become float32 in memory.

    Raises SourceError for what is no GGUF file, truncated, or of an architecture that transformers does not read from
    GGUF; UnsupportedError where the packages that read GGUF are not installed, or ``task`` is no text generation.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise SourceError(f"{path}: does not begin with 'GGUF': not a GGUF file, or damaged; download it again")
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise UnsupportedError(f"{path}: reading GGUF needs {' and '.join(missing)}; pip install 'edgekit[gguf]'")
    if task not in (None, "text-generation"):
        raise UnsupportedError(f"{path}: a GGUF file holds a language model, task '{task}' cannot be made of it")
    from edgekit.frontend.huggingface import quiet

    options: dict[str, Any] = {}
    if hasattr(
        transformers, "GgufConfig"
    ):  # without it transformers keeps the mark "quantized" on what it has dequantized
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    own: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    folder = Path(tempfile.mkdtemp(prefix="edgekit-gguf-"))
    try:
        with quiet():
            model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **own, **options)
            transformers.AutoTokenizer.from_pretrained(path.parent, **own).save_pretrained(folder)
            model.config.save_pretrained(folder)
            model.generation_config.save_pretrained(folder)
    except Exception as error:  # transformers and gguf raise many kinds
        shutil.rmtree(folder, ignore_errors=True)
        raise SourceError(
            f"{path}: transformers {transformers.__version__} cannot read it ({type(error).__name__}: {one_line(error)})"
        ) from error
    model.eval().requires_grad_(False)
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    files, _ = assets.collect(folder, text=True)
    architecture = type(model).__name__
    return ModuleSource(
        "gguf", path.stem, "text-generation", architecture, model, model.config, files, directory=folder
    )
