"""Attention of models that write it out themselves, without transformers' interface; the whole model's logits prove it.

ALiBi (arXiv 2108.12409) adds to a score what depends on the head and the key's position alone: features more of query
and key make it part of their product.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder.attention import Context, attend


def kind_of(module: nn.Module) -> str:
    """A module's file and class: ``modeling_bloom.BloomAttention``."""
    return f"{type(module).__module__.rpartition('.')[2]}.{type(module).__name__}"


def with_biases(context: Context, q: Tensor, k: Tensor, biases: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """q [B, H, S, D] and k [B, G, S, D] with H / G features more, so that ``scale`` q k has a bias added.

    ``biases`` float32 [positions, H] are those of a key's position.
    """
    batch, heads, length, _ = q.shape
    groups = k.shape[1]
    each = heads // groups
    own = [[float(feature == head % each) / scale for feature in range(each)] for head in range(heads)]
    chosen = torch.tensor(own)[None, :, None, :]
    positions = biases[context.positions].reshape(batch, length, groups, each).transpose(1, 2)
    return torch.cat((q, chosen.expand(batch, -1, length, -1)), dim=-1), torch.cat((k, positions), dim=-1)


def bloom(module: Any, context: Context) -> Callable[..., tuple[Tensor, None]]:
    file: Any = sys.modules[type(module).__module__]
    every = torch.ones(1, context.max_length)
    biases = file.build_alibi_tensor(every, module.num_heads, torch.float32)[:, 0].t().contiguous()

    def forward(hidden: Tensor, residual: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        scale = module.inv_norm_factor
        q, k, v = module._reshape(module.query_key_value(hidden))
        out = attend(context, module, *with_biases(context, q, k, biases, scale), v, scale)
        return module.dense(out.flatten(2)) + residual, None

    return forward


def falcon(module: Any, context: Context) -> Callable[..., tuple[Tensor, None]]:
    file: Any = sys.modules[type(module).__module__]
    every = torch.ones(1, context.max_length, dtype=torch.int64)
    biases = file.build_alibi_tensor(every, module.num_heads, torch.float32)[:, 0].t() * module.inv_norm_factor
    biases, groups = biases.contiguous(), module.num_kv_heads

    def forward(
        hidden: Tensor,
        alibi: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        batch, length, _ = hidden.shape
        fused = module.query_key_value(hidden).view(
            batch, length, groups, module.num_heads // groups + 2, module.head_dim
        )
        q = fused[:, :, :, :-2].flatten(2, 3).transpose(1, 2)
        k, v = (fused[:, :, :, place].transpose(1, 2) for place in (-2, -1))
        if alibi is not None:
            q, k = with_biases(context, q, k, biases, module.inv_norm_factor)
        elif position_embeddings is not None:
            q, k = file.apply_rotary_pos_emb(q, k, *position_embeddings)
        return module.dense(attend(context, module, q, k, v, module.inv_norm_factor).flatten(2)), None

    return forward


def mpt(module: Any, context: Context) -> Callable[..., tuple[Tensor, None]]:
    file: Any = sys.modules[type(module).__module__]
    biases = file.build_mpt_alibi_tensor(module.n_heads, context.max_length)[:, 0].t()
    biases = biases - biases[:1]  # what all keys have changes nothing; from 0 on, little is rounded

    def forward(hidden: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        mixed, scale = module.Wqkv(hidden), module.softmax_scale
        if module.clip_qkv:
            mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        q, k, v = (x.unflatten(2, (module.n_heads, module.head_dim)).transpose(1, 2) for x in mixed.chunk(3, dim=2))
        out = attend(context, module, *with_biases(context, q, k, biases, scale), v, scale)
        return module.out_proj(out.flatten(2)), None

    return forward


def gpt_neo(module: Any, context: Context) -> Callable[..., tuple[Tensor, None]]:
    window = int(module.config.window_size) if module.config.attention_layers[module.layer_id] == "local" else -1

    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return attend(context, module, q, k, v, 1.0, window=window).transpose(1, 2), None

    return forward


def openai_gpt(module: Any, context: Context) -> Callable[..., list[Tensor]]:
    def forward(q: Tensor, k: Tensor, v: Tensor, *args: Any) -> list[Tensor]:
        scale = 1 / math.sqrt(v.shape[-1]) if module.scale else 1.0
        return [attend(context, module, q, k.transpose(-1, -2), v, scale).transpose(1, 2)]

    return forward


def gpt_neox_japanese(module: Any, context: Context) -> Callable[..., tuple[Tensor, None]]:
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return attend(context, module, q, k, v, 1 / float(module.norm_factor)).transpose(1, 2), None

    return forward


def bert(module: Any, context: Context) -> Callable[..., tuple[Tensor, None]]:
    """BERT's as it was first written; its output projection is another module."""

    def forward(hidden: Tensor, *args: Any, encoder_hidden_states: None = None, **kwargs: Any) -> tuple[Tensor, None]:
        _no_encoder(module, encoder_hidden_states)
        heads = (module.num_attention_heads, module.attention_head_size)
        q, k, v = (x(hidden).unflatten(2, heads).transpose(1, 2) for x in (module.query, module.key, module.value))
        return attend(context, module, q, k, v, 1 / math.sqrt(module.attention_head_size)).flatten(2), None

    return forward


def bart(module: Any, context: Context) -> Callable[..., tuple[Tensor, None]]:
    """BART's as it was first written."""

    def forward(hidden_states: Tensor, key_value_states: None = None, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        _no_encoder(module, key_value_states)
        _no_encoder(module, kwargs.get("attn_prompt"))
        heads, layers = (module.num_heads, module.head_dim), (module.q_proj, module.k_proj, module.v_proj)
        q, k, v = (x(hidden_states).unflatten(2, heads).transpose(1, 2) for x in layers)
        return module.out_proj(attend(context, module, q, k, v, module.scaling).flatten(2)), None

    return forward


def _no_encoder(module: nn.Module, states: Any) -> None:
    if states is not None:
        raise UnsupportedError(f"{type(module).__name__}: attention to other tokens than its own is not supported")


OWN: dict[str, tuple[str, Callable[[Any, Context], Callable[..., Any]]]] = {
    "modeling_bloom.BloomAttention": ("forward", bloom),
    "modeling_falcon.FalconAttention": ("forward", falcon),
    "modeling_mpt.MptAttention": ("forward", mpt),
    "modeling_gpt_neo.GPTNeoSelfAttention": ("_attn", gpt_neo),
    "modeling_openai.Attention": ("_attn", openai_gpt),
    "modeling_gpt_neox_japanese.GPTNeoXJapaneseAttention": ("_attn", gpt_neox_japanese),
    "modeling_megatron_bert.MegatronBertSelfAttention": ("forward", bert),
    "modeling_rembert.RemBertSelfAttention": ("forward", bert),
    "modeling_mvp.MvpAttention": ("forward", bart),
    "modeling_trocr.TrOCRAttention": ("forward", bart),
    "modeling_xglm.XGLMAttention": ("forward", bart),
}
"""File and class of an attention module -> the method that is replaced, and what makes its stand-in."""
ALIBI = ("modeling_bloom.BloomAttention", "modeling_mpt.MptAttention")
"""Which of them need no positions but their keys'."""
