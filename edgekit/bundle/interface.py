"""The graph's inputs and outputs against those that the manifest lists, by which every reader feeds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from edgekit.bundle.manifest import Manifest
from edgekit.errors import BundleError

if TYPE_CHECKING:
    from onnx import ModelProto


def check_interface(model: ModelProto, manifest: Manifest, where: str) -> None:
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
    for layer in range(manifest.decoder.layers):
        for part in ("key", "value"):
            yield from (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")


def _values(model: ModelProto) -> set[str]:
    return {name for node in model.graph.node for name in node.output}
