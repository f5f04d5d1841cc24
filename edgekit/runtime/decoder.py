"""Runs a decoder graph token by token with its key-value cache in place and its other states in turns."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np

from edgekit.bundle import Bundle
from edgekit.errors import UnsupportedError, UsageError
from edgekit.runtime.session import Session, onnxruntime
from edgekit.spec.names import CROSS_MASK, FEATURES, PROMPT_PIECE
from edgekit.spec.records import DecoderInfo, StateTensor

DEFAULT_LENGTH = 2048
"""Tokens of context when none are asked for: a model may reach 128k, its cache would fill the machine."""


def decoder_info(bundle: Bundle) -> DecoderInfo:
    """What the manifest says of the bundle's decoder. Raises UnsupportedError where it is none."""
    info = bundle.manifest.decoder
    if info is None:
        raise UnsupportedError(
            f"{bundle.directory}: task {bundle.manifest.task} is no language model; nothing to decode"
        )
    return info


def unrewindable(bundle: Bundle, state: StateTensor, what: str) -> UnsupportedError:
    """What to raise where ``what`` would need a state of some tokens ago."""
    return UnsupportedError(
        f"{bundle.directory}: {what}: the model has states that no token can be taken out of ({state.input} is "
        f"{state.kind} at each step)"
    )


def cross_mask(source: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """What of an encoder's keys is padding, int64 [B, L], 0 there; nothing of a sound's, which has no mask."""
    keys = next(iter(values.values()))
    given = source.get("attention_mask")
    return np.ones((keys.shape[0], keys.shape[2]), np.int64) if given is None else given


class Decoder:
    """A bundle's decoder with its cache.

    Past and present of each layer are one buffer of ``max_length`` slots that the graph writes in place. A state that is
    replaced has two: each run reads one and writes the other, so that a run that is stopped leaves what was before it. A
    prompt is fed in pieces; a single token through :meth:`step` allocates nothing.
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

        ``profile`` and ``prepack`` are those of :class:`Session`. Raises UnsupportedError for a bundle that is no
        decoder, UsageError for a length the model cannot reach.
        """
        info = decoder_info(bundle)
        if max_length is not None and not 1 <= max_length <= info.max_length:
            raise UsageError(
                f"{bundle.directory}: max_length {max_length} is outside 1 to {info.max_length}, the model's context"
            )
        self.bundle, self.info = bundle, info
        self.max_length = max_length or min(info.max_length, DEFAULT_LENGTH)
        self.session = Session(bundle, threads, profile=profile, prepack=prepack)
        self._pictures = bundle.manifest.pictures
        translates = info.encoder is not None and bundle.encoder is not None
        self.encoder = Session(bundle.encoder, threads, prepack=prepack) if translates and bundle.encoder else None
        self._eyes: Session | None = None  # an encoder of pictures, loaded when the first is seen
        self._sources = 0  # rows that were encoded
        self.length = 0
        # A pair, for the two ways around of the states; ``_now`` says which of them reads what is now.
        self._many = (_Binding(self.session), _Binding(self.session))
        self._one = (_Binding(self.session), _Binding(self.session))  # of a single token, whose buffers stay bound
        self._now = 0
        self._options = onnxruntime().RunOptions()
        # ONNX Runtime's Python looks this entry up in every run, and finding none costs it an exception of 30 us.
        self._options.add_run_config_entry("gpu_graph_id", "0")
        self._batch = 0
        self._mask = np.zeros((0, self.max_length), np.int64)
        self._cache: dict[str, np.ndarray] = {}  # "key.0", "value.0", ...: [batch, heads, max_length, head_dim]
        self._states: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by input: [batch, *dims]
        self._kept = np.ones(1, np.int64)
        self._token = np.zeros((1, 1), np.int64)
        self._logits = np.empty((1, 1, info.vocab_size), np.float32)
        for many, one in zip(self._many, self._one, strict=True):
            many.input("logits_to_keep", self._kept)
            one.input("logits_to_keep", np.ones(1, np.int64))
            one.input("input_ids", self._token)
            one.output("logits", self._logits)
            if self._pictures is not None:
                one.input(FEATURES, np.empty((0, self._pictures.width), np.float32))

    @property
    def cache_bytes(self) -> int:
        """Bytes of the whole cache for one row; the system commits them as they fill."""
        cached = self.max_length * sum(heads * dim for _, (heads, dim) in self.info.caches())
        return 4 * (cached + 2 * sum(math.prod(state.dims) for state in self.info.states))

    def reset(self) -> None:
        """Forgets all tokens, and a :meth:`stop`; the buffers stay."""
        self.length = 0
        self._options.terminate = False
        for buffers in self._states.values():
            buffers[self._now].fill(0)

    def rewind(self, length: int) -> None:
        """Forgets the tokens from slot ``length`` on.

        Raises UsageError when there are fewer, UnsupportedError when some stay and the model has states that have no
        slots: :meth:`reset` and feed them again.
        """
        if not 0 <= length <= self.length:
            raise UsageError(f"rewind: {length} given, the cache holds {self.length} tokens")
        if length < self.length:
            for buffers in self._states.values():
                if length:
                    raise unrewindable(
                        self.bundle, self.info.states[0], f"rewind from {self.length} to {length} tokens"
                    )
                buffers[self._now].fill(0)
        self.length = length

    def reorder(self, rows: np.ndarray) -> None:
        """Each row goes on with the tokens that row ``rows[i]`` has so far; for models without states."""
        for array in self._cache.values():
            array[:, :, : self.length] = array[rows, :, : self.length]

    def encode(self, source: Mapping[str, np.ndarray], copies: int = 1) -> None:
        """Runs the encoder on a batch of sources, by its inputs' names, and forgets all tokens.

        What follows answers them, row by row, ``copies`` rows each. Raises UsageError for a source that the model cannot read,
        UnsupportedError for a model without encoder.
        """
        wanted = self.info.encoder
        if wanted is None or self.encoder is None:
            raise UnsupportedError(f"{self.bundle.directory}: has no encoder; feed the prompt to the decoder")
        length = next(iter(source.values())).shape[1]
        if wanted.max_length and length > wanted.max_length:
            raise UsageError(
                f"{self.bundle.directory}: a source of {length}; the encoder reads {wanted.max_length} at most, give a "
                "shorter one"
            )
        values = self.encoder.run(source, [name for name, _ in wanted.crossed()])
        mask = cross_mask(source, values)
        if copies > 1:  # ONNX Runtime's operator wants keys for every row of queries
            mask, values = np.repeat(mask, copies, 0), {n: np.repeat(a, copies, 0) for n, a in values.items()}
        self.cross(values, mask)

    def cross(self, values: Mapping[str, np.ndarray], mask: np.ndarray) -> None:
        """Binds an encoder's keys and values [B, heads, L, head_dim], with the padding int64 [B, L]; forgets all tokens."""
        self.reset()
        self._sources = mask.shape[0]
        for binding in itertools.chain(self._many, self._one if self._sources == 1 else ()):
            binding.input(CROSS_MASK, mask)
            for name, array in values.items():
                binding.input(name, array)

    def see(self, views: np.ndarray) -> np.ndarray:
        """The features float32 [rows, width] of views of pictures, float32 [n, 3, H, W].

        Raises UnsupportedError for a model that takes no pictures.
        """
        if self._pictures is None or self.bundle.encoder is None:
            raise UnsupportedError(f"{self.bundle.directory}: takes no pictures")
        if self._eyes is None:
            self._eyes = Session(self.bundle.encoder, self.session.threads)
        # One at a time: what lies between layers is as large as the views together, and no faster.
        seen = [self._eyes.run({"pixel_values": view[None]}, [FEATURES])[FEATURES][0] for view in views]
        return np.concatenate(seen)

    def stop(self) -> None:
        """Ends a run that is under way in another thread: it raises :class:`edgekit.runtime.session.Stopped`."""
        self._options.terminate = True

    def run(
        self,
        input_ids: np.ndarray,
        attention_mask: np.ndarray | None = None,
        keep: int = 1,
        features: np.ndarray | None = None,
    ) -> np.ndarray:
        """Feeds tokens int64 [B, S] and returns logits float32 [B, keep, V] of the last ``keep`` of them (0 = all).

        ``attention_mask`` int64 [B, S] is 0 where a token is padding, on either side of the row; without it none is.
        ``features`` float32 [N, K] (:meth:`see`) take the places of the N tokens of pictures, in order; without them
        such a token is a token. A single row is fed in pieces of ``PROMPT_PIECE``. Raises UsageError when the context
        is full, when B changes without :meth:`reset`, or for shapes that differ.
        """
        self._check(input_ids, attention_mask)
        left = self._checked_features(input_ids, features)
        batch, count = input_ids.shape
        if batch != self._batch:
            self._allocate(batch)
        self._mask[:, self.length : self.length + count] = 1 if attention_mask is None else attention_mask
        rows = min(keep, count) or count
        size = PROMPT_PIECE if batch == 1 and attention_mask is None else count
        if batch > 1 and self.length:
            size = 1  # ONNX Runtime's attention takes several tokens on a filled cache for one row only
        pieces = []
        for start in range(0, count, size):
            stop = min(start + size, count)
            wanted = stop - max(start, count - rows)
            ids = input_ids[:, start:stop]
            if self._pictures is not None:
                taken = int((ids == self._pictures.token).sum())
                self._many[self._now].input(FEATURES, left[:taken])
                left = left[taken:]
            logits = self._run(ids, max(1, wanted))
            if wanted > 0:
                pieces.append(logits)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=1)

    def step(self, token: int) -> np.ndarray:
        """Feeds one token of a single row and returns its logits float32 [V], valid until the next step.

        Raises UsageError as :meth:`run`.
        """
        if self.length == self.max_length or self._batch != 1:
            logits: np.ndarray = self.run(np.array([[token]], np.int64))[0, -1]
            return logits
        self._mask[0, self.length] = 1
        self._token[0, 0] = token
        one = self._one[self._now]
        one.input("attention_mask", self._mask[:, : self.length + 1])
        self.session.run_bound(one.ort, self._options)
        self._now = 1 - self._now
        self.length += 1
        row: np.ndarray = self._logits[0, 0]
        return row

    def cache(self) -> dict[str, np.ndarray]:
        """What the cache holds of a single row: "key.0", "value.0", ... float32 [heads, length, head_dim], views.

        A state is there under the name of its input, with the dims that the manifest gives.
        """
        cached = {name: array[0, :, : self.length] for name, array in self._cache.items()}
        return cached | {name: buffers[self._now][0] for name, buffers in self._states.items()}

    def refill(self, read: Callable[[str], np.ndarray], length: int) -> None:
        """Makes a single row's cache hold ``length`` tokens.

        ``read`` gives [heads, >= length, head_dim] by name, and states as they were after ``length`` tokens.
        """
        self.reset()
        self._allocate(1)
        for name, array in self._cache.items():
            array[0, :, :length] = read(name)[:, :length]
        for name, buffers in self._states.items():
            buffers[self._now][0] = read(name)
        self._mask[0, :length] = 1
        self.length = length

    def _check(self, ids: np.ndarray, mask: np.ndarray | None) -> None:
        if ids.ndim != 2 or 0 in ids.shape or not np.issubdtype(ids.dtype, np.integer):
            raise UsageError(f"input_ids: {ids.dtype} {list(ids.shape)} given, whole numbers [batch, tokens] expected")
        if self.encoder is not None and ids.shape[0] != self._sources:
            raise UsageError(
                f"input_ids: {ids.shape[0]} rows given, {self._sources} sources encoded; call encode() first"
            )
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

    def _checked_features(self, ids: np.ndarray, features: np.ndarray | None) -> np.ndarray:
        width = 0 if self._pictures is None else self._pictures.width
        if features is None:
            return np.empty((0, width), np.float32)
        count = 0 if self._pictures is None else int((ids == self._pictures.token).sum())
        if features.shape != (count, width) or (ids.shape[0] > 1 and self.length):
            raise UsageError(
                f"features: {list(features.shape)} given, {[count, width]} expected, a row for each token of pictures; "
                "several rows of tokens on an empty cache only"
            )
        return np.ascontiguousarray(features, np.float32)

    def _run(self, ids: np.ndarray, rows: int) -> np.ndarray:
        logits = np.empty((self._batch, rows, self.info.vocab_size), np.float32)
        self._kept[0], many = rows, self._many[self._now]
        many.input("input_ids", np.ascontiguousarray(ids, np.int64))
        many.input("attention_mask", np.ascontiguousarray(self._mask[:, : self.length + ids.shape[1]]))
        many.output("logits", logits)
        self.session.run_bound(many.ort, self._options)
        self._now = 1 - self._now
        self.length += ids.shape[1]
        return logits

    def _allocate(self, batch: int) -> None:
        self._batch = batch
        self._mask = np.zeros((batch, self.max_length), np.int64)
        pairs = (self._many, self._one) if batch == 1 else (self._many,)
        for name, (heads, dim) in self.info.caches():
            # Zeroed pages take memory when they are first written, so a long cache costs what is used of it.
            buffer = np.zeros((batch, heads, self.max_length, dim), np.float32)
            layer, part = name.split(".")
            self._cache[f"{part}.{layer}"] = buffer
            for binding in itertools.chain(*pairs):
                binding.input(f"past_key_values.{name}", buffer)
                binding.output(f"present.{name}", buffer)
        for state in self.info.states:
            shape = (batch, *state.dims)
            buffers = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
            self._states[state.input] = buffers
            for pair in pairs:
                for now, binding in enumerate(pair):
                    binding.input(state.input, buffers[now])
                    binding.output(state.output, buffers[1 - now])


class _Binding:
    """ONNX Runtime's binding of a run's inputs and outputs, and the memory behind it, which it does not keep alive."""

    def __init__(self, session: Session) -> None:
        self.ort = session.ort.io_binding()
        self._held: dict[tuple[str, str], np.ndarray] = {}

    def input(self, name: str, array: np.ndarray) -> None:
        self._held["input", name] = array
        self.ort.bind_ortvalue_input(name, onnxruntime().OrtValue.ortvalue_from_numpy(array))

    def output(self, name: str, array: np.ndarray) -> None:
        self._held["output", name] = array
        self.ort.bind_ortvalue_output(name, onnxruntime().OrtValue.ortvalue_from_numpy(array))
