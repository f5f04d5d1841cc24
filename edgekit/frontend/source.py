"""A model as the user has it, opened but not yet translated: what the loaders give and all else takes.

Weights keep the dtype in which they were stored and, where the file allows it, stay memory-mapped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.spec.records import Pictures

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class ModelInput:
    """One input of a model: numpy's name of its dtype, its sizes (None: any); "" and None where nothing is known."""

    name: str
    dtype: str = ""
    dims: tuple[int | None, ...] | None = None

    def __str__(self) -> str:
        """As messages show it: ``images float32 [n, 1, 28, 28]``."""
        if self.dims is None:
            return self.name
        sizes = [("n" if i == 0 else "any") if d is None else str(d) for i, d in enumerate(self.dims)]
        return f"{self.name} {self.dtype} [{', '.join(sizes)}]"


@dataclass(frozen=True)
class Hearing:
    """What sound a speech model reads."""

    rate: int  # Hz
    most: int  # samples; 0: any number


@dataclass(frozen=True)
class ModuleSource:
    """A PyTorch module whose layers can be found by name, compressed and traced.

    ``module`` is in eval mode, its parameters without gradient. Linear layers that quantize their input in training
    carry the attribute ``activation_block_size`` (0 = per token, as BitNet does).
    """

    kind: str  # "hf", "gguf" or "factory"
    name: str  # what to call the model: hub id, directory or file stem, or the factory's name
    task: str  # one of spec.names.TASKS
    architecture: str  # class name of the model ("LlamaForCausalLM")
    module: torch.nn.Module
    config: Any = None  # the transformers configuration
    assets: tuple[Path, ...] = ()  # tokenizer and generation files for the bundle; they live as long as module
    example_inputs: dict[str, torch.Tensor] = field(default_factory=dict)  # a factory's, by name of forward's argument
    directory: Path | None = None  # where the model's files are
    pictures: Pictures | None = None  # how they come into a language model that reads them
    hearing: Hearing | None = None  # of speech to text


@dataclass(frozen=True)
class ExportedSource:
    """A .pt2 file: a finished graph, which is traced as it is; its layers have no names left.

    ``module`` runs the program; it takes every input by its name in the graph, as ``example_inputs`` has them.
    """

    name: str
    task: str
    program: ExportedProgram
    module: torch.nn.Module
    inputs: tuple[ModelInput, ...]
    example_inputs: dict[str, torch.Tensor]
    architecture: str = "ExportedProgram"
    assets: tuple[Path, ...] = ()


@dataclass(frozen=True)
class OnnxSource:
    """An .onnx file whose external data has been checked to lie beside it; ``assets`` as in :class:`ModuleSource`."""

    name: str
    task: str
    architecture: str
    path: Path
    inputs: tuple[ModelInput, ...]
    assets: tuple[Path, ...] = ()


Source = ModuleSource | ExportedSource | OnnxSource


def stored_bytes(source: ModuleSource | ExportedSource) -> int:
    """Bytes of a model's safetensors files, or of its parameters where there are none."""
    directory = source.directory if isinstance(source, ModuleSource) else None
    stored = sum(f.stat().st_size for f in directory.glob("*.safetensors")) if directory is not None else 0
    sizes = {p.data_ptr() or id(p): p.numel() * p.element_size() for p in source.module.parameters()}
    return stored or sum(sizes.values())
