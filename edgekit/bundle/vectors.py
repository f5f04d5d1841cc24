"""Golden vectors: every array that anything reads is of the type and shape that the manifest asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgekit.bundle.manifest import Manifest
from edgekit.errors import BundleError
from edgekit.spec.names import BEFORE, ENCODER
from edgekit.spec.records import Pictures

Arrays = dict[str, np.ndarray]
Shape = tuple[int | str, ...]
REFERENCES = ("compressed", "original")


def read_vector(path: Path, manifest: Manifest) -> Arrays:
    """The arrays of one golden vector by name (docs/spec.md, section 6).

    Raises BundleError when the file cannot be read or an array is missing, has another type or shape than it must have,
    or names tokens that the model does not have.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: Arrays = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BundleError(f"{path}: golden vector cannot be read ({str(error)[:100]}); export again") from None
    if manifest.decoder is not None:
        _check_text(arrays, manifest, str(path))
    else:
        _check_sample(arrays, manifest, str(path))
    return arrays


def _check_text(arrays: Arrays, manifest: Manifest, where: str) -> None:
    info = manifest.decoder
    assert info is not None
    ids = _expect(arrays, "input.input_ids", "iu", (1, "tokens"), where)
    tokens = ids.shape[1]
    before = _expect(arrays, BEFORE, "iu", (1, "tokens"), where) if BEFORE in arrays else ids[:, :0]
    _check_range(before, info.vocab_size, BEFORE, where)
    if not 2 <= tokens <= info.max_length - before.shape[1]:
        raise _damaged(where, f"a text of {before.shape[1] + tokens} tokens", f"2 to {info.max_length:,}")
    _check_range(ids, info.vocab_size, "input.input_ids", where)
    rows = arrays.get("compressed.logits", np.empty(0)).shape[:1]
    if not (0,) < rows <= (tokens,):
        raise _damaged(where, f"compressed.logits of {list(rows)} positions", f"1 to {tokens}")
    for who in REFERENCES:
        shapes: dict[str, Shape] = {"top_values": (tokens, "n"), "logsumexp": (tokens,), "nll": (tokens - 1,)}
        for name, shape in {**shapes, "logits": (*rows, info.vocab_size)}.items():
            _expect(arrays, f"{who}.{name}", "f", shape, where)
        top = _expect(arrays, f"{who}.top_indices", "iu", arrays[f"{who}.top_values"].shape, where)
        _check_range(top, info.vocab_size, f"{who}.top_indices", where)
    given = [name for name in arrays if name.startswith(f"{ENCODER}.")]
    if bool(given) != (info.encoder is not None or BEFORE in arrays):
        raise _damaged(where, f"input for an encoder {given}", "it where the manifest has one")
    for name in given:
        _expect(arrays, name, "fiu", (1, *"n" * (arrays[name].ndim - 1)), where)
    if BEFORE in arrays:
        _check_before(arrays, manifest.pictures, where)
    if any(name.startswith("tap.") for name in arrays):
        kept = _expect(arrays, "tap_rows", "iu", ("rows",), where)
        _check_range(kept, tokens, "tap_rows", where)
        _check_taps(arrays, (len(kept), "n"), where)


def _check_before(arrays: Arrays, pictures: Pictures | None, where: str) -> None:
    """One view of a picture, and a token for each row of its features."""
    if pictures is None:
        raise _damaged(where, BEFORE, "a manifest with pictures")
    _expect(arrays, f"{ENCODER}.pixel_values", "f", (1, 3, *pictures.size), where)
    if (places := int((arrays[BEFORE] == pictures.token).sum())) != pictures.rows:
        raise _damaged(where, f"{places} tokens of a picture", str(pictures.rows))


def _check_sample(arrays: Arrays, manifest: Manifest, where: str) -> None:
    given = {name for name in arrays if name.startswith("input.")}
    expected = {f"input.{info.name}" for info in manifest.inputs}
    if given != expected:
        raise _damaged(where, f"inputs {sorted(given)}", str(sorted(expected)))
    for info in manifest.inputs:
        _expect(arrays, f"input.{info.name}", "fiub", info.dims, where)
    for info in manifest.outputs:
        for who in REFERENCES:
            if f"{who}.{info.name}" in arrays:
                _expect(arrays, f"{who}.{info.name}", "f", info.dims, where)
    _check_taps(arrays, None, where)


def _check_taps(arrays: Mapping[str, np.ndarray], shape: Shape | None, where: str) -> None:
    for name in (name for name in arrays if name.startswith("tap.")):
        _expect(arrays, name, "f", shape if shape is not None else tuple("n" * max(1, arrays[name].ndim)), where)


def _expect(arrays: Mapping[str, np.ndarray], name: str, kinds: str, shape: Shape, where: str) -> np.ndarray:
    """The array ``name``, of one of numpy's ``kinds``; sizes that are texts in ``shape`` may be anything but 0."""
    array = arrays.get(name)
    what = {"f": "numbers", "iu": "integers"}.get(kinds, "an array")
    wanted = f"{what} [{', '.join(map(str, shape))}]"
    if array is None:
        raise _damaged(where, f"no array {name!r}", wanted)
    fits = array.ndim == len(shape) and all(
        size == wanted_size if isinstance(wanted_size, int) else size > 0
        for size, wanted_size in zip(array.shape, shape, strict=True)
    )
    if array.dtype.kind not in kinds or not fits:
        raise _damaged(where, f"{name} is {array.dtype} {list(array.shape)}", wanted)
    return array


def _check_range(array: np.ndarray, size: int, name: str, where: str) -> None:
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if low < 0 or high >= size:
        raise _damaged(where, f"{name} goes from {low} to {high}", f"0 to {size - 1}")


def _damaged(where: str, problem: str, expected: str) -> BundleError:
    return BundleError(f"{where}: {problem[:300]}, {expected[:300]} expected; the file is damaged, export again")
