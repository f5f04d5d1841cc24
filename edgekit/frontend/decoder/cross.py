"""What a decoder reads of an encoder: each layer's keys and values for cross-attention, computed once for a source.

They are outputs of the encoder's graph and inputs of the decoder's, "cross.0.key" and so on, float32 [B, heads, L, head size].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder.attention import Context
from edgekit.spec.names import ENCODER, SOUND

PROJECTIONS = {"EncDecAttention": ("k", "v"), "encoder_attn": ("k_proj", "v_proj")}
"""What cross-attention is called in a layer -> its projections of the encoder's output."""


def has_encoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def reads_sound(model: nn.Module) -> bool:
    return has_encoder(model) and getattr(model, "main_input_name", "input_ids") != "input_ids"


def cross_attentions(model: nn.Module) -> list[nn.Module]:
    """The cross-attention of each layer. Raises UnsupportedError where a layer has none that edgekit knows."""
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    layers = next((list(m) for m in decoder.modules() if isinstance(m, nn.ModuleList)), [])
    found = [[m for name, m in layer.named_modules() if name.rpartition(".")[2] in PROJECTIONS] for layer in layers]
    if not found or any(len(modules) != 1 for modules in found):
        raise UnsupportedError(
            f"{type(model).__name__}: no cross-attention known in each decoder layer ({', '.join(PROJECTIONS)}); "
            "export encoder and decoder as modules of their own"
        )
    return [modules[0] for modules in found]


def projected(attentions: list[nn.Module], hidden: Tensor) -> dict[str, Tensor]:
    """Keys and values by name from the encoder's output float32 [B, L, K]."""
    values = {}
    for layer, attention in enumerate(attentions):
        known: Any = attention
        size = known.key_value_proj_dim if hasattr(known, "key_value_proj_dim") else known.head_dim
        names = next(names for names in PROJECTIONS.values() if hasattr(attention, names[0]))
        for part, name in zip(("key", "value"), names, strict=True):
            states = getattr(attention, name)(hidden)
            values[f"cross.{layer}.{part}"] = states.view(*states.shape[:2], -1, size).transpose(1, 2)
    return values


class CrossEncoder(nn.Module):
    """The encoder of an encoder-decoder, with the decoder's projections of its output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._attentions = cross_attentions(model)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        """``last_hidden_state`` float32 [B, L, K], keys and values; ids and mask int64 [B, L]."""
        return self.answer(input_ids=input_ids, attention_mask=attention_mask)

    def answer(self, **given: Tensor) -> dict[str, Tensor]:
        """What the encoder makes of its own input."""
        encoder: Any = self.model.get_encoder()  # type: ignore[operator]
        hidden = encoder(**given, return_dict=True).last_hidden_state
        return {"last_hidden_state": hidden, **projected(self._attentions, hidden)}


class SpeechEncoder(CrossEncoder):
    """The same of speech to text."""

    def forward(self, input_values: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        """The outputs of the other; sound float32 [B, samples], whose L the encoder decides."""
        return self.answer(**{str(self.model.main_input_name): input_values})


class Conditioned(nn.Module):
    """An encoder-decoder on one source as if it were a causal language model."""

    def __init__(self, model: nn.Module, source: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.model, self._source = model, dict(source)

    def forward(self, input_ids: Tensor, use_cache: bool = False) -> Any:
        return self.model(**self._source, decoder_input_ids=input_ids, use_cache=use_cache)


def arguments(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of a decoder's input as transformers' ``model`` takes it."""
    if not any(name.startswith(f"{ENCODER}.") for name in batch):
        return dict(batch)
    names = {"input_ids": "decoder_input_ids", f"{ENCODER}.{SOUND}": str(getattr(model, "main_input_name", ""))}
    return {names.get(name, name.removeprefix(f"{ENCODER}.")): array for name, array in batch.items()}


def example(model: nn.Module, batch: int, length: int) -> tuple[Tensor, list[Tensor]]:
    """An encoder's output made up, and what a decoder's graph gets of it: a mask int64 [B, L], keys and values."""
    width = projection_width(model)
    hidden = torch.randn(batch, length, width, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(batch, length, dtype=torch.int64)
    if not reads_sound(model):  # whose decoders look at silence, too
        mask[0, length - 1 :] = 0
    return hidden, [mask, *projected(cross_attentions(model), hidden).values()]


def projection_width(model: nn.Module) -> int:
    """Features of the encoder's output."""
    attention: Any = cross_attentions(model)[0]
    names = next(names for names in PROJECTIONS.values() if hasattr(attention, names[0]))
    return int(getattr(attention, names[0]).weight.shape[1])


def encoder_arguments(ids: Tensor, width: int, own: Any, cross: list[Tensor], name: str) -> dict[str, Any]:
    """What makes a model's forward read ``cross`` (as of :func:`example`) instead of an encoder; ``own`` is its cache."""
    from transformers.cache_utils import DynamicLayer, EncoderDecoderCache

    layers = []
    for keys, values in zip(cross[1::2], cross[2::2], strict=True):
        layers.append(DynamicLayer())
        layers[-1].keys, layers[-1].values, layers[-1].is_initialized = keys, values, True
    both = EncoderDecoderCache(own, type(own)(layers=layers))
    both.is_updated = dict.fromkeys(range(len(layers)), True)
    hidden = torch.zeros(ids.shape[0], 1, width)  # its numbers are not read: all that depends on them is in ``cross``
    return {"encoder_outputs": encoded(hidden), name: both, "use_cache": True}


def encoded(hidden: Tensor) -> Any:
    """An encoder's output as transformers' decoders take it."""
    from transformers.modeling_outputs import BaseModelOutput

    output = BaseModelOutput(last_hidden_state=hidden)
    output.attention_mask = None  # which Moonshine asks for
    return output


def relative_bias(module: Any, context: Context) -> Callable[..., Tensor]:
    """Stands in for T5's ``compute_bias``: what each head adds for a key's distance, which stops growing somewhere."""
    count = int(module.relative_attention_max_distance) + 1
    with torch.no_grad():
        table = module.compute_bias(count, count)[0, :, -1].flip(-1).t().contiguous()  # [distance, heads]

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        bias: Tensor = torch.ops.edgekit.relative(context.positions, context.mask, table)
        context.biases.append(bias)
        return bias

    return forward
