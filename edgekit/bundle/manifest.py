"""``manifest.json``: what a bundle says about itself. Written once, read strictly."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Any, cast

from edgekit.errors import BundleError
from edgekit.recipe import Recipe
from edgekit.spec.formats import FORMATS, NATIVE_FORMATS, NEEDED_FORMATS
from edgekit.spec.names import (
    DECODER_LIMITS,
    ENCODER_VERSION,
    LARGEST_SCALE,
    LARGEST_STATE,
    LARGEST_VIEW,
    LONGEST_MARK,
    MOST_TILES,
    PICTURE_FITS,
    PICTURES_VERSION,
    RATES,
    RESAMPLINGS,
    SCHEMA_MINOR,
    SCHEMA_VERSION,
    STATE_KINDS,
    STATE_TYPES,
    STATES_VERSION,
    TASKS,
)
from edgekit.spec.records import DeadUnits, DecoderInfo, EncoderInfo, FileInfo, Layer, Pictures, TensorInfo, VectorInfo
from edgekit.strict import build, known, parse_json


@dataclass(frozen=True)
class Manifest:
    """The whole manifest; see docs/spec.md."""

    schema_version: int
    task: str
    name: str
    architecture: str
    source: str
    recipe: dict[str, Any]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    nodes: int
    layers: tuple[Layer, ...] = ()
    dead_units: tuple[DeadUnits, ...] = ()
    decoder: DecoderInfo | None = None
    pictures: Pictures | None = None
    vectors: tuple[VectorInfo, ...] = ()
    taps: dict[str, str] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    files: tuple[FileInfo, ...] = ()

    @property
    def uses_operators(self) -> bool:
        """Some layer runs on edgekit's operator library; a table that is only looked up does not."""
        return bool(self._native_formats())

    @property
    def needs_operators(self) -> bool:
        """Some layer would be slower, or rounded in another way, without edgekit's operator library."""
        return bool(self._native_formats() & set(NEEDED_FORMATS))

    def _native_formats(self) -> set[str]:
        # Some formats are never a table, also where a manifest leaves out how activations are rounded.
        return {
            layer.format
            for layer in self.layers
            if layer.format in NATIVE_FORMATS and (layer.activation_block_size >= 0 or not FORMATS[layer.format].lookup)
        }

    def to_json(self) -> str:
        """The text of manifest.json."""
        data = dataclasses.asdict(self)
        if self.decoder is not None and not self.decoder.states:
            del data["decoder"]["states"]  # which readers of version 1 do not know
        if self.decoder is not None and self.decoder.encoder is None:
            del data["decoder"]["encoder"]  # likewise
        if self.pictures is None:
            del data["pictures"]
        return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Manifest:
        """Parses manifest.json strictly; unknown keys of a newer minor version are ignored. Raises BundleError."""
        try:
            data = parse_json(text)
        except ValueError as error:
            raise BundleError(
                f"{where}: not valid JSON ({str(error)[:120]}); export or download the bundle again"
            ) from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise BundleError(f"{where}: no schema_version; this is not an edgekit bundle, or a damaged one")
        if version > SCHEMA_VERSION:
            raise BundleError(
                f"{where}: schema_version {version}, this edgekit reads up to {SCHEMA_VERSION}; "
                "the bundle was written by a newer edgekit: pip install --upgrade edgekit"
            )
        minor = data.pop("schema_minor", 0)
        if type(minor) is not int or minor < 0:
            raise BundleError(f"{where}: schema_minor: {str(minor)[:60]!r} is not a whole number from 0")
        if minor > SCHEMA_MINOR:
            data = {k: known(Recipe, v) if k == "recipe" else v for k, v in known(Manifest, data).items()}
        manifest = cast(Manifest, build(Manifest, data, f"{where}: manifest", BundleError))
        if manifest.task not in TASKS:
            raise BundleError(f"{where}: manifest.task: {manifest.task[:60]!r} is not one of {', '.join(TASKS)}")
        if manifest.decoder is not None:
            _check_decoder(manifest.decoder, version, f"{where}: manifest.decoder")
        if manifest.pictures is not None:
            _check_pictures(manifest.pictures, manifest.decoder, f"{where}: manifest.pictures")
        return manifest


def schema_version(decoder: DecoderInfo | None, pictures: Pictures | None = None) -> int:
    """The oldest version that says all of a manifest with this decoder: old readers go on reading what they can run."""
    encoder = None if decoder is None else decoder.encoder
    speech = encoder and (encoder.sampling_rate or encoder.language_tokens or encoder.begin_suppressed_tokens)
    if pictures is not None or speech:
        return PICTURES_VERSION
    if decoder is not None and decoder.encoder is not None:
        return ENCODER_VERSION
    return STATES_VERSION if decoder is not None and (decoder.states or 0 in decoder.kv_heads) else 1


def _check_decoder(info: DecoderInfo, version: int, where: str) -> None:
    """Buffers are allocated by these numbers."""
    if len(info.kv_heads) != info.layers or len(info.head_dim) != info.layers:
        raise BundleError(
            f"{where}: {info.layers} layers, but {len(info.kv_heads)} kv_heads and {len(info.head_dim)} head_dim"
        )
    for name in ("kv_heads", "head_dim", "vocab_size", "max_length"):
        value = getattr(info, name)
        least = 0 if isinstance(value, tuple) and version >= STATES_VERSION else 1
        for size in value if isinstance(value, tuple) else (value,):
            if not least <= size <= DECODER_LIMITS[name]:
                raise BundleError(f"{where}.{name}: {size} is not between {least} and {DECODER_LIMITS[name]:,}")
    if any((heads == 0) != (dim == 0) for heads, dim in zip(info.kv_heads, info.head_dim, strict=True)):
        raise BundleError(
            f"{where}: kv_heads {list(info.kv_heads)} and head_dim {list(info.head_dim)}, 0 in one of them"
        )
    if info.encoder is not None:
        _check_encoder(info.encoder, info.vocab_size, f"{where}.encoder")
    for state in info.states:
        place = f"{where}.states: {state.input[:60]!r}"
        if state.kind not in STATE_KINDS or state.dtype not in STATE_TYPES:
            raise BundleError(
                f"{place} is {state.kind[:60]!r} and {state.dtype[:60]!r}, this edgekit knows "
                f"{', '.join(STATE_KINDS)} and {', '.join(STATE_TYPES)}; pip install --upgrade edgekit"
            )
        if not state.dims or min(state.dims) < 1 or math.prod(state.dims) > LARGEST_STATE:
            raise BundleError(f"{place} has dims {list(state.dims[:8])}, from 1 and {LARGEST_STATE:,} numbers at most")


def _check_encoder(info: EncoderInfo, vocabulary: int, where: str) -> None:
    if not info.heads or len(info.heads) != len(info.head_dim):
        raise BundleError(f"{where}: {len(info.heads)} heads, but {len(info.head_dim)} head_dim")
    sizes = [(heads, "kv_heads") for heads in info.heads] + [(dim, "head_dim") for dim in info.head_dim]
    if any(not 1 <= size <= DECODER_LIMITS[name] for size, name in sizes) or info.max_length < 0:
        raise BundleError(f"{where}: heads, head_dim or max_length that no model has; the file is damaged")
    tokens = (*info.start_tokens, *info.suppressed_tokens, *info.begin_suppressed_tokens, *info.language_tokens)
    if not info.start_tokens or any(not 0 <= token < vocabulary for token in tokens):
        raise BundleError(f"{where}: no start_tokens, or tokens that are not between 0 and {vocabulary - 1}")
    if len({*info.suppressed_tokens, *info.begin_suppressed_tokens}) == vocabulary or len(tokens) > 4 * vocabulary:
        raise BundleError(f"{where}: suppressed tokens leave none of {vocabulary} to choose, or stand there twice")
    if info.language_tokens and len(info.start_tokens) < 2:
        raise BundleError(f"{where}: language_tokens, but no second start token that one of them could be")
    if info.sampling_rate and info.sampling_rate not in RATES:
        raise BundleError(f"{where}.sampling_rate: {info.sampling_rate} is not between {RATES[0]} and {RATES[-1]:,}")


def _check_pictures(info: Pictures, decoder: DecoderInfo | None, where: str) -> None:
    """Buffers are allocated by these numbers, and prompts made of these texts."""
    if decoder is None or decoder.encoder is not None or not 0 <= info.token < decoder.vocab_size:
        raise BundleError(f"{where}: without a language model that has the token {info.token}; the file is damaged")
    if info.fit not in PICTURE_FITS or info.resample not in RESAMPLINGS:
        raise BundleError(
            f"{where}: {info.fit[:60]!r} and {info.resample[:60]!r}, this edgekit knows {', '.join(PICTURE_FITS)} and "
            f"{', '.join(RESAMPLINGS)}; pip install --upgrade edgekit"
        )
    sizes = (*info.size, info.rows, info.edge or 1)
    fits = len(info.size) == 2 and all(1 <= size <= LARGEST_VIEW for size in sizes)
    if not fits or not 1 <= info.width <= DECODER_LIMITS["head_dim"] or len(info.mean) != 3 or len(info.deviation) != 3:
        raise BundleError(f"{where}: size, rows, width, mean or deviation that no model has; the file is damaged")
    height, width = info.size
    tiles = info.fit == "tiles" and (height != width or not 0 < info.edge <= MOST_TILES * height)
    if tiles or (info.fit == "crop" and info.edge < max(height, width)):
        raise BundleError(
            f"{where}: edge {info.edge} does not go with {info.fit} of {height} x {width}; the file is damaged"
        )
    if info.whole.count("{image}") != 1 or (info.tile and info.tile.count("{image}") != 1) or not info.place:
        raise BundleError(f"{where}: no place, or not one {{image}} in whole and in tile; the file is damaged")
    if not info.token_text or max(map(len, (info.token_text, info.place, info.whole, info.tile))) > LONGEST_MARK:
        raise BundleError(
            f"{where}: no token_text, or texts of more than {LONGEST_MARK} characters; the file is damaged"
        )
    numbers = (*info.mean, *info.deviation, info.scale, *(1 / part if part else math.inf for part in info.deviation))
    if max(map(abs, numbers)) > LARGEST_SCALE:
        raise BundleError(f"{where}: scale, mean or deviation that no pixel has; the file is damaged")
