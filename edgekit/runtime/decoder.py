"""Runs a decoder graph token by token with its key-value cache in place."""

from __future__ import annotations

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError, UsageError
from edgekit.runtime.session import Session, onnxruntime

DEFAULT_LENGTH = 2048
"""Tokens of context when none are asked for: a model may reach 128k, its cache would fill the machine."""


class Decoder:
    """A bundle's decoder with its cache.

    Past and present of each layer are one buffer of ``max_length`` slots that the graph writes in place; a token
    allocates its logits and nothing else.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int = 1,
        max_length: int | None = None,
        profile: bool = False,
        prepack: bool = True,
    ) -> None:
        """``max_length``: tokens of context at most, by default the model's own limit or 2048, the smaller.

        ``profile`` and ``prepack`` are those of :class:`Session`.

        Raises UnsupportedError for a bundle that is no decoder, UsageError for a length the model cannot reach.
        """
        info = bundle.manifest.decoder
        if info is None:
            raise UnsupportedError(
                f"{bundle.directory}: task {bundle.manifest.task} is no language model; nothing to decode"
            )
        if max_length is not None and not 1 <= max_length <= info.max_length:
            raise UsageError(
                f"{bundle.directory}: max_length {max_length} is outside 1 to {info.max_length}, the model's context"
            )
        self.bundle, self.info = bundle, info
        self.max_length = max_length or min(info.max_length, DEFAULT_LENGTH)
        self.session = Session(bundle, threads, profile=profile, prepack=prepack)
        self.length = 0
        self._binding = self.session.ort.io_binding()
        self._batch = 0
        self._mask = np.zeros((0, self.max_length), np.int64)
        self._kept = np.ones(1, np.int64)
        self._held: dict[str, np.ndarray] = {}  # a binding does not keep its memory alive
        self._bind("logits_to_keep", self._kept)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache for one row; the system commits them as they fill."""
        return 4 * 2 * self.max_length * sum(h * d for h, d in zip(self.info.kv_heads, self.info.head_dim, strict=True))

    def reset(self) -> None:
        """Forgets all tokens; the buffers stay."""
        self.length = 0

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, keep: int = 1) -> np.ndarray:
        """Feeds tokens int64 [B, S] and returns logits float32 [B, keep, V] of the last ``keep`` of them (0 = all).

        ``attention_mask`` int64 [B, S] is 0 where a token is padding, on either side of the row; without it none is.
        Raises UsageError when the context is full, when B changes without :meth:`reset`, or for shapes that differ.
        """
        self._check(input_ids, attention_mask)
        batch, count = input_ids.shape
        if batch != self._batch:
            self._allocate(batch)
        self._mask[:, self.length : self.length + count] = 1 if attention_mask is None else attention_mask
        if batch > 1 and count > 1 and self.length:
            # ONNX Runtime's attention takes several tokens on a filled cache for one row only.
            steps = [self._step(input_ids[:, i : i + 1], 1) for i in range(count)]
            return np.concatenate(steps[-keep:], axis=1)
        return self._step(input_ids, keep)

    def _check(self, ids: np.ndarray, mask: np.ndarray | None) -> None:
        if ids.ndim != 2 or 0 in ids.shape or not np.issubdtype(ids.dtype, np.integer):
            raise UsageError(f"input_ids: {ids.dtype} {list(ids.shape)} given, whole numbers [batch, tokens] expected")
        if mask is not None and mask.shape != ids.shape:
            raise UsageError(
                f"attention_mask: {list(mask.shape)} given, {list(ids.shape)} expected, the shape of input_ids"
            )
        if self.length and ids.shape[0] != self._batch:
            raise UsageError(f"input_ids: {ids.shape[0]} rows given, the cache holds {self._batch}; call reset() first")
        if self.length + ids.shape[1] > self.max_length:
            raise UsageError(
                f"{self.bundle.directory}: context full: {self.length} + {ids.shape[1]} tokens, the decoder was opened "
                f"for {self.max_length} ({self.cache_bytes >> 20} MiB of cache, model limit {self.info.max_length}); "
                "open it with a larger max_length"
            )

    def _step(self, ids: np.ndarray, keep: int) -> np.ndarray:
        rows = min(keep, ids.shape[1]) or ids.shape[1]
        logits = np.empty((self._batch, rows, self.info.vocab_size), np.float32)
        self._kept[0] = rows
        self._bind("input_ids", np.ascontiguousarray(ids, np.int64))
        self._bind("attention_mask", np.ascontiguousarray(self._mask[:, : self.length + ids.shape[1]]))
        self._bind("logits", logits, output=True)
        self.session.run_bound(self._binding)
        self.length += ids.shape[1]
        return logits

    def _bind(self, name: str, array: np.ndarray, output: bool = False) -> None:
        value = onnxruntime().OrtValue.ortvalue_from_numpy(array)
        self._held[name] = array
        if output:
            self._binding.bind_ortvalue_output(name, value)
        else:
            self._binding.bind_ortvalue_input(name, value)

    def _allocate(self, batch: int) -> None:
        self._batch = batch
        self._mask = np.zeros((batch, self.max_length), np.int64)
        for layer, (heads, dim) in enumerate(zip(self.info.kv_heads, self.info.head_dim, strict=True)):
            for part in ("key", "value"):
                # Zeroed pages take memory when they are first written, so a long cache costs what is used of it.
                buffer = np.zeros((batch, heads, self.max_length, dim), np.float32)
                self._bind(f"past_key_values.{layer}.{part}", buffer)
                self._bind(f"present.{layer}.{part}", buffer, output=True)
