"""Reads a bundle that nobody vouches for: every path is confined, every size checked before it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from edgekit.bundle.confinement import plain_file
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.tensors import Stored, initializers, read_graph
from edgekit.bundle.vectors import Arrays, read_vector
from edgekit.errors import BundleError
from edgekit.spec.names import CROSS_MASK, DATA, ENCODER, FEATURES, GRAPH, LARGEST_MANIFEST, MANIFEST, SOUND
from edgekit.spec.records import VectorInfo

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; nothing is read from ``directory`` but what ``manifest`` lists."""

    directory: Path
    manifest: Manifest
    encoder: Bundle | None = None  # of an encoder-decoder, or of pictures: a bundle in this one
    _tensors: dict[str, Stored | np.ndarray] = field(default_factory=dict, repr=False)

    @staticmethod
    def open(bundle: BundleLike) -> Bundle:
        """Opens and validates a directory, or gives back what is open already. Raises BundleError.

        Hashes are checked by :meth:`check_hashes`.
        """
        if isinstance(bundle, Bundle):
            return bundle
        directory = Path(bundle)
        if not directory.is_dir():
            raise BundleError(f"{directory}: no such directory; give a bundle that `edgekit export -o` made")
        manifest = Manifest.from_json(_manifest_text(directory), str(directory / MANIFEST))
        sizes = _file_sizes(directory, manifest)
        model = read_graph(directory / GRAPH)
        _check_interface(model, manifest, str(directory / GRAPH))
        return Bundle(directory, manifest, _encoder(directory, manifest), initializers(model, directory / GRAPH, sizes))

    @property
    def graph_path(self) -> Path:
        """model.onnx."""
        return self.directory / GRAPH

    @property
    def nbytes(self) -> int:
        """Bytes of all listed files."""
        return sum(f.bytes for f in self.manifest.files)

    @property
    def model_bytes(self) -> int:
        """Bytes of the graph and its weights, an encoder's too."""
        own = sum(f.bytes for f in self.manifest.files if f.path in (GRAPH, DATA))
        return own + (0 if self.encoder is None else self.encoder.model_bytes)

    @property
    def stored(self) -> dict[str, Stored]:
        """Where each initializer outside the graph lies, by name."""
        return {name: place for name, place in self._tensors.items() if isinstance(place, Stored)}

    def check_hashes(self) -> None:
        """Compares every file with its sha256. Raises BundleError naming the file."""
        for info in self.manifest.files:
            if sha256(self.directory / info.path) != info.sha256:
                raise BundleError(
                    f"{self.directory / info.path}: sha256 is not the manifest's; "
                    "the file was changed, export or download the bundle again"
                )

    def vectors(self) -> list[tuple[VectorInfo, Arrays]]:
        """The golden vectors: for each file its arrays by name. Raises BundleError (:func:`read_vector`)."""
        return [(info, read_vector(self.directory / info.file, self.manifest)) for info in self.manifest.vectors]

    def tensor(self, name: str) -> np.ndarray:
        """An initializer by name, read-only; one in the data file is mapped and not read until it is used.

        Raises BundleError when there is none of that name or the file was cut since the bundle was opened.
        """
        if name not in self._tensors:
            raise BundleError(
                f"{self.graph_path}: no initializer {name!r}; the manifest and the graph do not belong together"
            )
        stored = self._tensors[name]
        if isinstance(stored, np.ndarray):
            return stored
        if 0 in stored.shape:
            return np.empty(stored.shape, stored.dtype)
        try:
            return np.memmap(self.directory / stored.file, stored.dtype, "r", stored.offset, stored.shape)
        except (OSError, ValueError) as error:
            raise BundleError(f"{self.directory / stored.file}: cannot be mapped ({error})") from None


BundleLike: TypeAlias = Bundle | Path | str
"""What every function takes for a bundle: an opened one, or its directory."""


def _manifest_text(directory: Path) -> str:
    path = directory / MANIFEST
    if not path.exists():
        raise BundleError(f"{directory}: no {MANIFEST}; this is not an edgekit bundle")
    if (size := plain_file(directory, MANIFEST, str(directory)).st_size) > LARGEST_MANIFEST:
        raise BundleError(f"{path}: {size:,} bytes, {LARGEST_MANIFEST:,} at most; no manifest is that large")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise BundleError(f"{path}: not UTF-8 text; export or download the bundle again") from None
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check the file's permissions") from None


def _file_sizes(directory: Path, manifest: Manifest) -> dict[str, int]:
    """Bytes of each listed file, after checking that it is there, plain and as large as the manifest says."""
    where = str(directory / MANIFEST)
    sizes: dict[str, int] = {}
    seen: set[str] = set()
    for info in manifest.files:
        if info.path.lower() in seen:
            raise BundleError(f"{where}: {info.path[:120]!r} is listed twice (upper and lower case are one)")
        seen.add(info.path.lower())
        size = plain_file(directory, info.path, where).st_size
        if size != info.bytes:
            raise BundleError(
                f"{directory / info.path}: {size:,} bytes, the manifest says {info.bytes:,}; "
                "export or download the bundle again"
            )
        sizes[info.path] = size
    for vector in manifest.vectors:
        if vector.file not in sizes:
            raise BundleError(f"{where}: vector {vector.file[:120]!r} is not among the listed files")
    if GRAPH not in sizes:
        raise BundleError(f"{where}: {GRAPH} is not among the listed files")
    return sizes


def _encoder(directory: Path, manifest: Manifest) -> Bundle | None:
    """The encoder that a decoder reads. Raises BundleError when it is not there or gives something else than is read."""
    pictures = manifest.pictures
    if manifest.decoder is None or (manifest.decoder.encoder is None and pictures is None):
        return None
    inner = f"{ENCODER}/{MANIFEST}"
    if inner not in {file.path for file in manifest.files}:  # a listed file is known to lie in plain directories
        raise BundleError(f"{directory / MANIFEST}: {inner} is not among the listed files; export or download again")
    if Manifest.from_json(_manifest_text(directory / ENCODER), str(directory / inner)).decoder is not None:
        raise BundleError(f"{directory / inner}: is a decoder's, an encoder's is expected; export or download again")
    encoder = Bundle.open(directory / ENCODER)
    sound = any(info.name == SOUND for info in encoder.manifest.inputs)
    rate = manifest.decoder.encoder.sampling_rate if manifest.decoder.encoder else 0
    if sound != bool(rate):
        raise BundleError(
            f"{encoder.directory}: reads {'sound' if sound else 'no sound'}, and the decoder's sampling_rate is {rate}; "
            "encoder and decoder do not belong together, export or download again"
        )
    given = {info.name: info.dims for info in encoder.manifest.outputs}
    if pictures is not None and (given.get(FEATURES) or (0,))[1:] != (pictures.rows, pictures.width):
        raise BundleError(
            f"{encoder.directory}: output '{FEATURES}' is {list(given.get(FEATURES, ()))}, the decoder reads "
            f"{pictures.rows} rows of {pictures.width}; they do not belong together, export or download again"
        )
    read = next((info.dims for info in encoder.manifest.inputs if info.name == "pixel_values"), ())
    if pictures is not None and read[1:] != (3, *pictures.size):
        raise BundleError(
            f"{encoder.directory}: input 'pixel_values' is {list(read)}, the manifest's pictures have views of "
            f"{list(pictures.size)}; they do not belong together, export or download again"
        )
    for name, (heads, dim) in manifest.decoder.encoder.crossed() if manifest.decoder.encoder else ():
        if (given.get(name) or (0,))[1::2] != (heads, dim):
            raise BundleError(
                f"{encoder.directory}: output {name!r} is {list(given.get(name, ()))}, the decoder reads {heads} heads of "
                f"{dim}; encoder and decoder do not belong together, export or download again"
            )
    return encoder


def _check_interface(model: ModelProto, manifest: Manifest, where: str) -> None:
    """Raises BundleError unless the graph has the inputs, outputs and tapped values that the manifest names.

    An input with a value of its own (an initializer) may be left out of the manifest.
    """
    own = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    outputs = {value.name for value in model.graph.output}
    listed_inputs = {info.name for info in manifest.inputs}
    listed_outputs = {info.name for info in manifest.outputs}
    wrong = [
        *(f"has no input {name!r}" for name in listed_inputs - inputs),
        *(f"has an input {name!r} that the manifest does not list" for name in inputs - own - listed_inputs),
        *(f"has no output {name!r}" for name in listed_outputs - outputs),
        *(f"has no input or output {name!r}" for name in _of_a_decoder(manifest) if name not in inputs | outputs),
        *(f"has no value {name!r} to tap" for name in set(manifest.taps.values()) - outputs - _values(model)),
    ]
    if wrong:
        raise BundleError(
            f"{where}: {min(wrong)[:200]}; the manifest and the graph do not belong together, export or download again"
        )


def _of_a_decoder(manifest: Manifest) -> Iterator[str]:
    """What every program that generates text feeds and reads (docs/spec.md, section 5)."""
    if manifest.decoder is None:
        return
    yield from ("input_ids", "attention_mask", "logits")
    for name, _ in manifest.decoder.caches():
        yield from (f"past_key_values.{name}", f"present.{name}")
    if manifest.pictures is not None:
        yield FEATURES
    if manifest.decoder.encoder is not None:
        yield from (CROSS_MASK, *(name for name, _ in manifest.decoder.encoder.crossed()))
    for state in manifest.decoder.states:
        yield from (state.input, state.output)


def _values(model: ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces. Raises BundleError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); check the file's permissions") from None
    return digest.hexdigest()
