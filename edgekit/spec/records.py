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
class StateTensor:
    """A tensor that a decoder hands from call to call beside keys and values: a convolution's window, a recurrent matrix."""

    input: str
    output: str
    dtype: str  # one of names.STATE_TYPES
    dims: tuple[int, ...]  # of one row; batch_size stands before them in the graph
    kind: str  # one of names.STATE_KINDS


@dataclass(frozen=True)
class EncoderInfo:
    """What a decoder reads of its encoder, and what an answer begins with."""

    heads: tuple[int, ...]  # of each decoder layer's cross-attention
    head_dim: tuple[int, ...]
    max_length: int = 0  # of a source, in the encoder's tokens or samples of sound; 0: of any length
    start_tokens: tuple[int, ...] = ()  # what the decoder is fed first
    suppressed_tokens: tuple[int, ...] = ()  # never chosen
    begin_suppressed_tokens: tuple[int, ...] = ()  # never chosen first
    language_tokens: tuple[int, ...] = ()  # the likeliest of them takes the place of the second start token
    sampling_rate: int = 0  # of the sound that the encoder reads, in Hz; 0: it reads text

    def crossed(self) -> list[tuple[str, tuple[int, int]]]:
        """Keys and values as the encoder's outputs and the decoder's inputs are named, and each one's heads and head size."""
        sizes = enumerate(zip(self.heads, self.head_dim, strict=True))
        return [(f"cross.{i}.{part}", size) for i, size in sizes for part in ("key", "value")]


@dataclass(frozen=True)
class DecoderInfo:
    """What a program needs to generate text with the graph."""

    layers: int
    kv_heads: tuple[int, ...]  # of each layer, 0 where it has no keys and values
    head_dim: tuple[int, ...]
    vocab_size: int
    max_length: int  # tokens the rotary tables reach
    proof_error: float = 0.0
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    states: tuple[StateTensor, ...] = ()
    encoder: EncoderInfo | None = None

    def caches(self) -> list[tuple[str, tuple[int, int]]]:
        """Keys and values as their tensors are named, "0.key" and so on, and each one's heads and head size."""
        sizes = enumerate(zip(self.kv_heads, self.head_dim, strict=True))
        return [(f"{i}.{part}", size) for i, size in sizes if size[0] for part in ("key", "value")]


@dataclass(frozen=True)
class Pictures:
    """How a picture becomes views of one size, and where the rows of features that each view gives stand in a prompt."""

    token: int  # whose embeddings rows of features replace, in order
    token_text: str
    rows: int  # of features, for each view
    width: int  # numbers in a row
    size: tuple[int, ...]  # height and width of a view
    fit: str  # one of names.PICTURE_FITS
    edge: int  # a picture is first resized to this shorter (crop) or longer (tiles) side; 0: it is not
    resample: str  # one of names.RESAMPLINGS
    scale: float  # a pixel 0 to 255 times this, less the mean, over the deviation
    mean: tuple[float, ...]  # of red, green and blue
    deviation: tuple[float, ...]
    place: str  # what stands for a picture in a prompt
    whole: str  # what it becomes: {image} are the tokens of the view of the whole picture
    tile: str = ""  # what stands before that for each tile, with {row} and {column} from 1; empty: none are cut

    def prompt(self, rows: int, columns: int) -> str:
        """What a picture of so many tiles becomes in a prompt."""
        tokens, text = self.token_text * self.rows, ""
        for row in range(1, rows + 1):
            for column in range(1, columns + 1):
                text += self.tile.replace("{row}", str(row)).replace("{column}", str(column)).replace("{image}", tokens)
            text += "\n"
        return text + ("\n" if rows else "") + self.whole.replace("{image}", tokens)


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
