"""Records that travel: what passes find out about a model, what the manifest says, what readers in any language read.

Fields and their order are those of manifest.json (docs/spec.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TensorInfo:
    """One input or output of the graph; symbolic sizes are names."""

    name: str
    dtype: str  # ONNX name in lower case: float, int64, ...
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Layer:
    """What became of one linear, embedding or convolution layer."""

    name: str  # module path in the original model
    format: str
    block_size: int
    bits_per_weight: float  # scales and padding counted
    shape: tuple[int, ...]
    tensor: str = ""  # initializer that holds it; rows of it where layers were merged
    scales: str = ""
    rows: tuple[int, ...] = ()
    activation_block_size: int = -1  # -1: activations are not rounded, 0: per token
    reason: str = ""  # why it is not what one might expect

    @property
    def weights(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class DeadUnits:
    """Units of one layer that do nothing: ``count`` of ``of`` were removed, or look dead and had to stay."""

    layer: str  # the layers that make them, e.g. model.layers.0.mlp.gate_proj+up_proj
    unit: str  # hidden unit, channel, attention head, query head, key-value head, embedding row, zero row, zero column
    count: int
    of: int
    removed: bool
    reason: str


@dataclass(frozen=True)
class DecoderInfo:
    """What a program needs to generate text with the graph."""

    layers: int
    kv_heads: tuple[int, ...]
    head_dim: tuple[int, ...]
    vocab_size: int
    max_length: int  # tokens the rotary tables reach
    proof_error: float = 0.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class VectorInfo:
    """A file of golden inputs and outputs."""

    file: str
    kind: str  # one of names.VECTOR_KINDS


@dataclass(frozen=True)
class FileInfo:
    """One file of the bundle; the path is relative, with forward slashes."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Surviving:
    """What is left of a layer of ``size`` rows whose dead units were removed, for who still has the whole layer.

    ``rows`` and ``columns`` are indices into the whole layer; ``bias``, of ``size`` numbers, is the whole bias with the
    constants in it that removed inputs contributed.
    """

    size: int
    rows: tuple[int, ...]
    columns: tuple[int, ...]
    bias: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Part:
    """The rows, first and last + 1, of a weight that are one layer of the original model."""

    name: str
    rows: tuple[int, int]
    reason: str = ""


@dataclass(frozen=True)
class Plan:
    """What a ``Linear`` or ``Embedding`` of the graph is to be stored as."""

    layer: str  # module path in the original model
    format: str = ""  # empty until it is chosen
    block_size: int = 0
    reason: str = ""
    parts: tuple[Part, ...] = ()  # where several layers became one
