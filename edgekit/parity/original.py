"""The original model, computed afresh. The one place after the bundle that needs PyTorch, and only when asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import RuntimeUnavailable, UsageError
from edgekit.metrics import Arrays
from edgekit.runtime.replay import feeds


class Original:
    """The PyTorch model that a bundle was exported from."""

    def __init__(self, bundle: Bundle, source: str) -> None:
        """``source`` as `export` takes it.

        Raises SourceError when it cannot be read, UsageError for another task, RuntimeUnavailable without torch.
        """
        try:
            from edgekit.frontend.loading import load
            from edgekit.frontend.source import OnnxSource, stored_bytes
            from edgekit.frontend.streamed import widen

            opened = load(source, task=bundle.manifest.task)
        except ImportError as error:
            raise RuntimeUnavailable(
                f"--original needs PyTorch and transformers ({error}); leave it out or install them"
            ) from error
        if isinstance(opened, OnnxSource) or opened.task != bundle.manifest.task:
            raise UsageError(
                f"{source}: no PyTorch model for {bundle.manifest.task}; give what the bundle was exported from"
            )
        self.source, self.name, self.bytes = source, opened.name, stored_bytes(opened)
        self._bundle, self._module = bundle, widen(opened.module).eval()

    def answers(self, vectors: Sequence[Arrays]) -> list[Arrays]:
        """The vectors with ``original.*`` computed now instead of read."""
        answered: list[Arrays] = []
        for vector in vectors:
            if self._bundle.manifest.decoder is not None:
                fresh = self._text(vector["input.input_ids"])
            else:
                fresh = self._outputs(feeds(vector))
            answered.append({**vector, **{f"original.{name}": array for name, array in fresh.items()}})
        return answered

    def logits(self, inputs: Arrays, output: str) -> np.ndarray:
        """The graph output ``output``, as the module answers it."""
        return self._outputs(inputs)[output]

    def nll(self, ids: np.ndarray) -> np.ndarray:
        """Nats of each next token of ids int64 [1, T]: float32 [T - 1]."""
        return self._text(ids)["nll"]

    def _outputs(self, inputs: Arrays) -> dict[str, np.ndarray]:
        from edgekit.frontend.compressed import native_activations
        from edgekit.golden import module_outputs

        with native_activations(self._module):
            return module_outputs(self._module, inputs, [output.name for output in self._bundle.manifest.outputs])

    def _text(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        from edgekit.frontend.compressed import native_activations
        from edgekit.golden import text_vector

        with native_activations(self._module):
            return text_vector(self._module, ids)
