"""From a transformers causal language model to a ``torch.export`` program made of edgekit's operators.

The substituted model first runs eagerly beside the untouched one (:func:`prove`); only then is it traced, with batch,
sequence, past and total lengths symbolic and one symbol for the past of every layer.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from edgekit.errors import CheckFailed, EdgekitError, UnsupportedError
from edgekit.frontend.decoder.attention import Context, check_layers, kv_shapes
from edgekit.frontend.decoder.cross import encoded, encoder_arguments, example, has_encoder, projection_width
from edgekit.frontend.decoder.own_attention import ALIBI, kind_of
from edgekit.frontend.decoder.positions import Place, watched
from edgekit.frontend.decoder.recurrence import cache
from edgekit.frontend.decoder.substitute import attention_free, check_supported, substituted
from edgekit.frontend.streamed import materialize, stored_weights, streaming

WITH_OPERATORS = "with edgekit's operators"
POSITIONS = ("position_ids", "decoder_position_ids")
"""What a model's forward calls the positions of its tokens."""
PROOF_TOLERANCE = 2e-4
"""Largest difference allowed between the untouched and the substituted model, relative to the largest logit."""


@dataclass(frozen=True)
class TracedDecoder:
    """A traced decoder, and what its cache needs. Inputs: input_ids, attention_mask, logits_to_keep, past keys and
    values by layer, past states, an encoder's mask, keys and values, the features of pictures."""

    program: ExportedProgram
    kv_shapes: tuple[
        tuple[int, int], ...
    ]  # per cache: key-value heads, head size; 0, 0 for a layer of a hybrid without one
    states: dict[str, tuple[int, ...]]  # by name: the dims of a row
    max_length: int  # positions the rotary tables hold
    cross: tuple[tuple[int, int], ...]  # heads and head size of each layer's attention to an encoder
    features: int  # numbers in a row of features of pictures; 0 for a model that takes none
    proof_error: float  # max abs difference of substituted against untouched logits, over the largest logit

    def attending(self) -> list[int]:
        """The layers that have keys and values."""
        return [layer for layer, (heads, _) in enumerate(self.kv_shapes) if heads]


class _Decoder(nn.Module):
    """The model with a flat signature: aligned tokens in, logits and the new cache out."""

    def __init__(self, model: nn.Module, context: Context) -> None:
        super().__init__()
        self.model = model
        self._context = context
        taken = inspect.signature(model.forward).parameters
        # transformers 5.24 has another name for it; without one every call would start anew, which here it does.
        self._cache_name = next((name for name in ("cache", "past_key_values") if name in taken), None)
        self._positions_name = next((name for name in POSITIONS if name in taken), None)
        self.cached = 0  # tensors of ``past`` that are keys and values; the others are states

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: Tensor, past: list[Tensor], cross: list[Tensor],
        features: list[Tensor],
    ) -> list[Tensor]:  # fmt: skip
        context = self._context
        context.features = features
        context.mask, context.cross, context.biases = attention_mask, cross, []
        ids, context.positions, context.lengths, context.total, index = torch.ops.edgekit.align(
            input_ids, attention_mask
        )
        context.kept = (index, logits_to_keep)
        cached = self.cached
        context.past = list(zip(past[:cached:2], past[1:cached:2], strict=True)) if past else None
        context.states.begin(ids, attention_mask, dict(zip(context.states.dims, past[cached:], strict=False)))
        context.caches, context.tables = [], []
        more: dict[str, Any] = {} if self._positions_name is None else {self._positions_name: context.positions}
        if self._cache_name is not None:
            more |= {self._cache_name: cache(decoder_layers(self.model), context.states), "use_cache": True}
        if cross:
            assert self._cache_name is not None
            width, own = projection_width(self.model), more[self._cache_name]
            more |= encoder_arguments(ids, width, own, cross, self._cache_name)
        out = self.model(**{"decoder_input_ids" if cross else "input_ids": ids}, return_dict=True, **more)
        present = [tensor for cached in context.caches for tensor in cached.present]
        return [out.logits, *present, *(context.states.present[name] for name in context.states.dims)]

    def place(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Hook behind the embeddings: features of pictures take the places of their token's."""
        placed: Tensor = torch.ops.edgekit.place(output, args[0], *self._context.features, picture_token(self.model))
        return placed

    def restore(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hook before the head: only the wanted rows reach it, in the caller's order."""
        assert self._context.kept is not None
        return (torch.ops.edgekit.restore(args[0], *self._context.kept), *args[1:])


def picture_token(model: nn.Module) -> int | None:
    """The token whose embeddings are replaced by features of pictures; None for a model that takes none."""
    return getattr(model, "edgekit_picture_token", None)


def _tap(name: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple | list):
            return type(output)((torch.ops.edgekit.tap(output[0], name), *output[1:]))
        return torch.ops.edgekit.tap(output, name)

    return hook


def decoder_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The decoder blocks by module path, in order: the longest ModuleList with one entry a hidden layer."""
    if has_encoder(model):
        decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
        layers = next(module for module in decoder.modules() if isinstance(module, nn.ModuleList))
        name = next(name for name, module in model.named_modules() if module is layers)
        return {f"{name}.{i}": block for i, block in enumerate(layers)}
    count = model.config.get_text_config().num_hidden_layers  # type: ignore[operator, union-attr]
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return {f"{name}.{i}": block for i, block in enumerate(module)}
    raise UnsupportedError(f"{type(model).__name__}: no list of {count} decoder layers found")


def check_positions(model: nn.Module, places: dict[nn.Module, Place]) -> None:
    """Refuses a model that cannot be told where each row's tokens stand. Raises UnsupportedError."""
    told = any(name in inspect.signature(model.forward).parameters for name in POSITIONS) or bool(places)
    told = told or any(hasattr(module, "compute_bias") for module in model.modules())
    if not attention_free(model) and not told and not any(kind_of(module) in ALIBI for module in model.modules()):
        raise UnsupportedError(
            f"{type(model).__name__}.forward takes no position_ids, and no table of positions is known in it; padded "
            "batches could not be right"
        )


def position_limit(config: Any) -> int:
    """The longest sequence the model was made for and whose rotary frequencies stay fixed."""
    text = config.get_text_config()
    limit = int(getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", 0) or 2048)
    settings = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    nested = [s for s in settings.values() if isinstance(s, dict)] or [settings]
    for one in nested:
        # These recompute their frequencies beyond this length; a fixed table is right up to it.
        if one.get("rope_type") in ("longrope", "dynamic"):
            limit = min(limit, int(one.get("original_max_position_embeddings") or limit))
    return limit


def prove(original: Tensor, mine: Tensor) -> float:
    """Relative difference of the substituted model's logits; raises CheckFailed beyond PROOF_TOLERANCE."""
    error = float((original - mine).abs().max() / original.abs().max().clamp(min=1e-9))
    if not error <= PROOF_TOLERANCE:
        raise CheckFailed(
            f"substituted model is {error:.1e} of the largest logit off the original (limit {PROOF_TOLERANCE:.0e}); "
            "this architecture does something that edgekit does not know; please report it with the model's config.json"
        )
    return error


def trace(model: nn.Module, max_positions: int | None = None) -> TracedDecoder:
    """Substitutes, proves and traces a causal language model.

    ``model`` is a transformers PreTrainedModel with float32 weights in eval mode. ``max_positions`` cuts the rotary
    tables. Raises UnsupportedError naming what cannot be exported, CheckFailed when the substitution is not exact.
    """
    check_supported(model)
    context = Context()
    context.max_length = min(position_limit(model.config), max_positions or context.max_length)
    vocabulary = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    ids = (torch.arange(12).reshape(2, 6) * 7919 + 11) % vocabulary
    # RoBERTa counts no position for a padding token, which is in no text.
    ids[ids == getattr(model.config, "pad_token_id", None)] = vocabulary - 1
    with torch.no_grad():
        with streaming(model), _model_code(model, "on token ids"), watched(model) as places:
            given: dict[str, Any] = {"input_ids": ids}
            cross: list[Tensor] = []
            if has_encoder(model):
                hidden, cross = example(model, 2, 7)
                given = {"encoder_outputs": encoded(hidden), "attention_mask": cross[0], "decoder_input_ids": ids}
            original = model(**given, use_cache=False).logits
            if original.isnan().any() and stored_weights(model):  # Falcon and Mamba read a layer's weight themselves
                original = materialize(model)(**given, use_cache=False).logits
        check_positions(model, places)
        context.max_length = min([context.max_length, *(place.rows for place in places.values())])
        with substituted(model, context, places) as rotaries:
            decoder = _Decoder(model, context)
            hooks = [model.get_output_embeddings().register_forward_pre_hook(decoder.restore)]  # type: ignore[operator]
            features: list[Tensor] = []
            if picture_token(model) is not None:
                embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
                hooks.append(embeddings.register_forward_hook(decoder.place))
                features = [torch.zeros(0, embeddings.weight.shape[1])]
            hooks += [block.register_forward_hook(_tap(name)) for name, block in decoder_layers(model).items()]
            buffers: list[tuple[nn.Module, str]] = []
            try:
                keep = torch.zeros(1, dtype=torch.int64)
                with streaming(model), _model_code(model, WITH_OPERATORS):
                    mine = decoder(ids, torch.ones_like(ids), keep, [], cross, features)[0]
                check_layers(model, decoder_layers(model), context)
                shapes = kv_shapes(context, len(decoder_layers(model)))
                decoder.cached = 2 * len(context.caches)
                error = prove(original, mine)
                for rotary in rotaries:
                    buffers += [(rotary.module, name) for name in rotary.settle()]
                with _model_code(model, WITH_OPERATORS):
                    program = _export(decoder, context, shapes, cross, features)
            finally:
                for hook in hooks:
                    hook.remove()
                for module, name in buffers:
                    delattr(module, name)
    crossed = tuple((keys.shape[1], keys.shape[3]) for keys in cross[1::2])
    width = features[0].shape[1] if features else 0
    return TracedDecoder(program, shapes, dict(context.states.dims), context.max_length, crossed, width, error)


@contextmanager
def _model_code(model: nn.Module, how: str) -> Iterator[None]:
    """What a model's own code raises, by itself or when it meets edgekit's operators or the tracer, as UnsupportedError."""
    try:
        yield
    except EdgekitError:
        raise
    except Exception as error:  # any: it is the model's code
        words = " ".join(str(error).split())[:200]
        raise UnsupportedError(
            f"{type(model).__name__}: its code does not run {how} ({type(error).__name__}: {words})"
        ) from error


def _export(
    decoder: _Decoder,
    context: Context,
    shapes: tuple[tuple[int, int], ...],
    cross: list[Tensor],
    features: list[Tensor],
) -> ExportedProgram:
    # All sizes differ and exceed 1, or torch.export would take equal or unit sizes for one constant.
    batch, sequence, past = 2, 5, 7
    caches = [torch.zeros(batch, heads, past, dim) for heads, dim in shapes if heads for _ in ("key", "value")]
    states = [torch.zeros(batch, *dims) for dims in context.states.dims.values()]
    ids = torch.ones(batch, sequence, dtype=torch.int64)
    mask = torch.ones(batch, past + sequence, dtype=torch.int64)
    b, s, p, t = Dim("batch"), Dim("sequence", min=2), Dim("past", min=2), Dim("total", min=2)
    length = Dim("source", min=2)
    crossed = [{0: b, 1: length}, *({0: b, 2: length} for _ in cross[1:])] if cross else []
    cross = [torch.cat((x, x), dim=1 if x.dim() == 2 else 2) for x in cross]  # of a length that nothing else has
    dynamic = ({0: b, 1: s}, {0: b, 1: t}, None, [{0: b, 2: p} for _ in caches] + [{0: b} for _ in states], crossed)
    rows = [{0: Dim("rows", min=2)} for _ in features]
    features = [torch.zeros(3, x.shape[1]) for x in features]
    context.tracing = True
    try:
        return torch.export.export(
            decoder,
            (ids, mask, torch.zeros(1, dtype=torch.int64), [*caches, *states], cross, features),
            dynamic_shapes=(*dynamic, rows),
            strict=False,
        )
    finally:
        context.tracing = False
