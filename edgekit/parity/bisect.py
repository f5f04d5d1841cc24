"""Finds the first layer whose output is not what the compressed PyTorch model computes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.metrics import Arrays, tensor_distance
from edgekit.parity.replayer import Replayer, Run
from edgekit.parity.report import LayerDistance
from edgekit.runtime.decoder import cross_mask
from edgekit.runtime.replay import feeds, for_encoder
from edgekit.runtime.session import Session
from edgekit.spec.names import BEFORE, CROSS_MASK

STEP_DB = 10.0
"""Rounding costs a decibel or two a layer; a fault costs more than this at once."""
POOR_DB = 20.0
"""What the first layer must at least reach."""
TOGETHER = 16
"""Layers whose outputs are asked for at once: all of a large model's would not fit into memory."""
TOGETHER_BYTES = 64 << 20
"""And bytes of them, as far as the golden vectors tell."""


def bisect(
    vectors: Sequence[Arrays], replayer: Replayer, outputs: Mapping[str, Mapping[str, float]]
) -> tuple[LayerDistance, ...]:
    """Compares the output of every tapped layer, in the graph's order, on all vectors.

    The graph's ``outputs`` come last; their distances are known already. Values between nodes become outputs, which can
    keep ONNX Runtime from fusing across them. Returns nothing for a bundle without taps.
    """
    vectors = _with_taps(vectors)
    distances = {
        layer: _typical([vector[f"tap.{layer}"] for vector in vectors], answers)
        for layer, answers in _tapped(vectors, replayer)
    }
    return _judged(replayer.backend.bundle, distances, outputs)


def bisect_between(
    vectors: Sequence[Arrays], replayers: tuple[Replayer, Replayer], outputs: Mapping[str, Mapping[str, float]]
) -> tuple[LayerDistance, ...]:
    """As :func:`bisect`, the second backend against the first."""
    vectors = _with_taps(vectors)
    first = dict(_tapped(vectors, replayers[0]))
    distances = {layer: _typical(first[layer], answers) for layer, answers in _tapped(vectors, replayers[1])}
    return _judged(replayers[0].backend.bundle, distances, outputs)


def _with_taps(vectors: Sequence[Arrays]) -> list[Arrays]:
    """Without those that hold no layer's output: a text behind a picture, whose text alone is judged too."""
    return [vector for vector in vectors if BEFORE not in vector]


def _tapped(vectors: Sequence[Arrays], replayer: Replayer) -> Iterator[tuple[str, list[np.ndarray]]]:
    """Every tapped layer and its output for each vector."""
    bundle = replayer.backend.bundle
    taps = {layer: value for layer, value in bundle.manifest.taps.items() if all(f"tap.{layer}" in v for v in vectors)}
    if not taps:
        return
    with replayer.tapped(list(taps.values())) as run:
        for part in _together(vectors, list(taps)):
            runs = [_run(bundle, run, vector, {layer: taps[layer] for layer in part}) for vector in vectors]
            for layer in part:
                answers = [run[layer] for run in runs]
                if any(v[f"tap.{layer}"].size != answer.size for v, answer in zip(vectors, answers, strict=True)):
                    raise BundleError(
                        f"{bundle.directory}: the golden vectors' tap.{layer} are not of the size that the graph "
                        "answers; the bundle is damaged, export again"
                    )
                yield layer, answers


def _together(vectors: Sequence[Arrays], layers: Sequence[str]) -> Iterator[list[str]]:
    """The layers in groups whose outputs may be asked for at once."""
    group: list[str] = []
    size = 0
    for layer in layers:
        more = max(vector[f"tap.{layer}"].nbytes for vector in vectors)
        if group and (len(group) == TOGETHER or size + more > TOGETHER_BYTES):
            yield group
            group, size = [], 0
        group, size = [*group, layer], size + more
    yield group


def _judged(
    bundle: Bundle, distances: dict[str, dict[str, float]], outputs: Mapping[str, Mapping[str, float]]
) -> tuple[LayerDistance, ...]:
    if not distances:
        return ()
    distances = {**distances, **{f"output {name}": dict(distance) for name, distance in outputs.items()}}
    first = first_diverging([d["sqnr_db"] for d in distances.values()])
    return tuple(
        LayerDistance(layer, _formats(bundle, layer), d["max_abs"], d["sqnr_db"], d["cosine"], index == first)
        for index, (layer, d) in enumerate(distances.items())
    )


def _typical(expected: Sequence[np.ndarray], answers: Sequence[np.ndarray]) -> dict[str, float]:
    """The median distance of rows (tokens or samples): the first token of a text is often a thousand times larger than
    the others and would hide them all."""
    pairs = [(a, b.reshape(a.shape)) for a, b in zip(expected, answers, strict=True)]
    each = [tensor_distance(a[row], b[row]) for a, b in pairs for row in range(len(a))]
    return {name: float(np.median([distance[name] for distance in each])) for name in each[0]}


def first_diverging(sqnr_db: Sequence[float]) -> int | None:
    """The index of the first layer that loses much more than the ones before it, or None: rounding that adds up."""
    worst = math.inf
    for index, value in enumerate(sqnr_db):
        if value < (POOR_DB if index == 0 else worst - STEP_DB):
            return index
        worst = min(worst, value)
    return None


def _run(bundle: Bundle, run: Run, vector: Arrays, taps: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The layers' outputs for a vector, at the rows that the vector keeps."""
    if bundle.manifest.decoder is None:
        values = run(feeds(vector), list(taps.values()))
        return {layer: values[value] for layer, value in taps.items()}
    rows = vector["tap_rows"]
    ids = vector["input.input_ids"][:, : int(rows.max()) + 1]
    values = run({**_decoder_feeds(bundle, ids), **_crossed(bundle, vector)}, list(taps.values()))
    return {layer: values[value].reshape(ids.shape[1], -1)[rows] for layer, value in taps.items()}


def _decoder_feeds(bundle: Bundle, ids: np.ndarray) -> dict[str, np.ndarray]:
    """A prompt on an empty cache."""
    info = bundle.manifest.decoder
    assert info is not None
    inputs = {"input_ids": ids, "attention_mask": np.ones_like(ids), "logits_to_keep": np.ones(1, np.int64)}
    for name, (heads, dim) in info.caches():
        inputs[f"past_key_values.{name}"] = np.zeros((1, heads, 0, dim), np.float32)
    for state in info.states:
        inputs[state.input] = np.zeros((1, *state.dims), np.float32)
    return inputs


def _crossed(bundle: Bundle, vector: Arrays) -> dict[str, np.ndarray]:
    """What a decoder's graph gets of a source that an encoder has read; nothing where there is none."""
    info = bundle.manifest.decoder
    if bundle.encoder is None or info is None or info.encoder is None:
        return {}
    source = for_encoder(vector)
    values = Session(bundle.encoder).run(source, [name for name, _ in info.encoder.crossed()])
    return {**values, CROSS_MASK: cross_mask(source, values)}


def _formats(bundle: Bundle, layer: str) -> str:
    inside = Counter(w.format for w in bundle.manifest.layers if w.name == layer or w.name.startswith(f"{layer}."))
    return ", ".join(f"{name}×{count}" for name, count in inside.items())
