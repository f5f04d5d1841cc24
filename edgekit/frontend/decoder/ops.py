"""The torch operators that stand for what a decoder graph does, whatever precision it is later stored in.

Each has a CPU implementation, so that a substituted model runs eagerly in PyTorch: a fault of the substitution shows
there and cannot be mistaken for a fault of ONNX Runtime. Each has a shape function, so that ``torch.export`` traces it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear

LIBRARY: Any = torch.library.Library("edgekit", "DEF")  # type: ignore[no-untyped-call]

LIBRARY.define("align(Tensor ids, Tensor mask) -> (Tensor, Tensor, Tensor, Tensor, Tensor)")
LIBRARY.define("rope(Tensor x, Tensor cos, Tensor sin, Tensor positions, bool interleaved) -> Tensor")
LIBRARY.define(
    "gqa(Tensor q, Tensor k, Tensor v, Tensor past_k, Tensor past_v, Tensor lengths, Tensor total,"
    " float scale, float softcap, int window, Tensor? sink, Tensor? bias) -> (Tensor, Tensor, Tensor)"
)
LIBRARY.define("relative(Tensor positions, Tensor mask, Tensor table) -> Tensor")
LIBRARY.define("place(Tensor x, Tensor ids, Tensor features, int token) -> Tensor")
LIBRARY.define("cross(Tensor q, Tensor k, Tensor v, Tensor mask, float scale) -> Tensor")
LIBRARY.define("rmsnorm(Tensor x, Tensor weight, float eps) -> Tensor")
LIBRARY.define(
    "experts(Tensor x, Tensor index, Tensor weights, Tensor gate_up, Tensor? gate_up_bias, Tensor down, Tensor? down_bias,"
    " float alpha, float beta, float limit) -> Tensor"
)
LIBRARY.define("real(Tensor ids, Tensor mask) -> (Tensor, Tensor, Tensor)")
LIBRARY.define(
    "conv(Tensor x, Tensor weight, Tensor? bias, Tensor past, Tensor mask, Tensor left, Tensor right, bool silu)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define(
    "scan(Tensor q, Tensor k, Tensor v, Tensor decay, Tensor? beta, Tensor past, Tensor mask, float scale)"
    " -> (Tensor, Tensor)"
)
LIBRARY.define("l2norm(Tensor x, float eps) -> Tensor")
LIBRARY.define("restore(Tensor x, Tensor index, Tensor keep) -> Tensor")
LIBRARY.define("tap(Tensor x, str name) -> Tensor")


class Expert(Protocol):
    """Weights or biases of all experts, of which one is read at a time."""

    def __getitem__(self, expert: int, /) -> Tensor: ...


def align(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Moves each row's padding to the right.

    ``ids`` int64 [B, S]; ``mask`` int64 [B, T] over the cache and the new tokens, T >= S, zeros at either end of the
    new part. Returns aligned ids [B, S]; positions int64 [B, S]; the index of each row's last slot, int32 [B]; T as
    int32 [1]; and, for each of the caller's slots, where it now is, int64 [B, S].
    """
    length = ids.shape[1]
    slots = torch.arange(length)
    new = mask[:, mask.shape[1] - length :]
    first = new.argmax(dim=1, keepdim=True)
    past = mask[:, : mask.shape[1] - length].sum(dim=1, keepdim=True)
    positions = past + slots
    aligned = ids.gather(1, (slots + first) % length)
    total = torch.tensor([mask.shape[1]], dtype=torch.int32)
    return aligned, positions, positions[:, -1].to(torch.int32), total, (slots - first) % length


def rope(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, interleaved: bool) -> Tensor:
    """Rotates the first ``2 * cos.shape[1]`` features of ``x`` float32 [B, H, S, D].

    Tables are float32 [P, R/2], positions int64 [B, S].
    Source: RoFormer, arXiv 2104.09864; ``interleaved`` pairs neighbours (2i, 2i+1) instead of halves (i, i + R/2).
    """
    half = cos.shape[1]
    c, s = cos[positions].unsqueeze(1), sin[positions].unsqueeze(1)
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        out = torch.stack((a * c - b * s, a * s + b * c), dim=-1).flatten(-2)
    else:
        a, b = turned[..., :half], turned[..., half:]
        out = torch.cat((a * c - b * s, a * s + b * c), dim=-1)
    return torch.cat((out, rest), dim=-1)


def gqa(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, lengths: Tensor, total: Tensor,
    scale: float, softcap: float, window: int, sink: Tensor | None = None, bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Causal grouped-query attention (``com.microsoft::GroupQueryAttention``); row b's new tokens end at slot
    ``lengths[b]`` of its cache.

    ``q`` float32 [B, H, S, D]; ``k``, ``v`` [B, G, S, D] with H a multiple of G; past [B, G, P, D]; ``window`` counts
    the token itself, -1 is unlimited; ``softcap`` 0 is none; ``sink`` float32 [H] is one more score a head, of a value
    of zeros; ``bias`` float32 [B, H, S, P + S] is added to the scores. Returns [B, S, H, D] and the caches [B, G, P + S, D].
    """
    batch, heads, length, dim = q.shape
    groups = heads // k.shape[1]
    slots = (lengths.to(torch.int64) + 1 - length)[:, None] + torch.arange(length)
    index = slots[:, None, :, None].expand(batch, k.shape[1], length, dim)
    blank = torch.zeros_like(k)
    keys = torch.cat((past_k, blank), dim=2).scatter(2, index, k)
    values = torch.cat((past_v, blank), dim=2).scatter(2, index, v)
    scores = torch.einsum("bhsd,bhtd->bhst", q, keys.repeat_interleave(groups, dim=1)) * scale
    if bias is not None:
        scores = scores + bias
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    distance = slots[:, :, None] - torch.arange(keys.shape[2])
    hidden = distance < 0
    if window > 0:
        hidden = hidden | (distance >= window)
    scores = scores.masked_fill(hidden[:, None], float("-inf"))
    if sink is not None:
        scores = torch.cat((scores, sink[None, :, None, None].expand(batch, -1, length, 1)), dim=-1)
    weights = scores.softmax(dim=-1)[..., : keys.shape[2]]
    out = torch.einsum("bhst,bhtd->bshd", weights, values.repeat_interleave(groups, dim=1))
    return out.contiguous(), keys, values


def relative(positions: Tensor, mask: Tensor, table: Tensor) -> Tensor:
    """A bias float32 [B, H, S, T] that depends on how far a key is before its query; ``positions`` int64 [B, S] are the
    queries', ``mask`` [B, T] has a slot for each key, ``table`` float32 [N, H] a row for each distance, the last for all
    that are farther."""
    distance = positions[:, :, None] - torch.arange(mask.shape[1])
    return table[distance.clamp(0, len(table) - 1)].permute(0, 3, 1, 2).contiguous()


def cross(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Attention to an encoder's output (``com.microsoft::MultiHeadAttention``): q float32 [B, H, S, D], k and v
    [B, H, L, D], ``mask`` int64 [B, L], 0 where there is padding; [B, S, H, D]."""
    scores = torch.einsum("bhsd,bhld->bhsl", q, k) * scale
    weights = scores.masked_fill(mask[:, None, None] == 0, float("-inf")).softmax(dim=-1)
    return torch.einsum("bhsl,bhld->bshd", weights, v).contiguous()


def place(x: Tensor, ids: Tensor, features: Tensor, token: int) -> Tensor:
    """Embeddings ``x`` float32 [B, S, K] of ``ids`` int64 [B, S], those of ``token`` replaced by ``features`` [N, K] in order,
    as far as there are any."""
    places = (ids == token).nonzero()[: len(features)]
    return x.index_put((places[:, 0], places[:, 1]), features)


def rmsnorm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` float32 [..., K] divided by its root mean square, times ``weight`` [K] (arXiv 1910.07467)."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def experts(
    x: Tensor, index: Tensor, weights: Tensor, gate_up: Expert, gate_up_bias: Expert | None, down: Expert,
    down_bias: Expert | None, alpha: float, beta: float, limit: float,
    rounded: Callable[[Tensor], Tensor] = lambda x: x,
) -> Tensor:  # fmt: skip
    """The chosen experts' gated layers, mixed (``ExpertMatMul``, ``com.microsoft::MoE``): each row of ``x`` float32 [T, K] goes
    through k of E.

    ``index`` int64 and ``weights`` float32 [T, k] say which and how much of each. For expert e, ``gate_up[e]`` is
    float32 [2 I, K], the gate's rows first, ``down[e]`` [K, I], biases [2 I] and [K]. The gate is g · sigmoid(alpha ·
    g) · (u + beta); with a ``limit`` that is not 0, g is at most it and u within it. ``rounded`` is what happens to the
    input of a product. Source: GLU variants, arXiv 2002.05202; gpt-oss model card, arXiv 2508.10925.
    """
    out = torch.zeros_like(x)
    for expert in sorted(set(index.flatten().tolist())):
        rows, place = (index == expert).nonzero(as_tuple=True)
        both = linear(rounded(x[rows]), gate_up[expert], None if gate_up_bias is None else gate_up_bias[expert])
        gate, up = both.chunk(2, dim=-1)
        if limit:
            gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
        hidden = rounded(gate * torch.sigmoid(alpha * gate) * (up + beta))
        answer = linear(hidden, down[expert], None if down_bias is None else down_bias[expert])
        out.index_add_(0, rows, answer * weights[rows, place, None])
    return out


def real(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the new tokens of each row are, after :func:`align`: a state must not see padding.

    Arguments as there. Returns 1 for tokens and 0 for padding, float32 [B, S, 1], and two indices int64 [B, S, 1]: that
    which moves each row's padding to the left, and that which moves it back.
    """
    length = ids.shape[1]
    count = mask[:, mask.shape[1] - length :].sum(dim=1, keepdim=True)
    slots = torch.arange(length)
    left, right = (slots + count) % length, (slots - count) % length
    return (slots < count).to(torch.float32).unsqueeze(-1), left.unsqueeze(-1), right.unsqueeze(-1)


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, mask: Tensor, left: Tensor, right: Tensor, silu: bool
) -> tuple[Tensor, Tensor]:
    """A causal convolution of each channel by itself (``com.microsoft::CausalConvWithState``), padding left out.

    ``x`` float32 [B, C, S]; ``weight`` [C, K]; ``bias`` [C]; ``past`` [B, C, K - 1] are the inputs before these; the rest is
    of :func:`real`. Returns [B, C, S], after SiLU where it is asked for, and the last K - 1 inputs.
    """
    moved = (x.transpose(1, 2) * mask).gather(1, left.expand(-1, -1, x.shape[1])).transpose(1, 2)
    whole = torch.cat((past, moved), dim=2)
    out = conv1d(whole, weight.unsqueeze(1), bias, groups=weight.shape[0])
    out = torch.nn.functional.silu(out) if silu else out
    back = out.transpose(1, 2).gather(1, right.expand(-1, -1, x.shape[1])).transpose(1, 2)
    return back.contiguous(), whole[:, :, whole.shape[2] - past.shape[2] :].contiguous()


def scan(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None, past: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """A linear recurrence of matrices (``com.microsoft::LinearAttention``): S = exp(decay) S + k u, answer = scale q S.

    u is v, or with ``beta`` the correction beta (v - k exp(decay) S) (gated delta rule, arXiv 2412.06464). ``q``, ``k``
    float32 [B, S, G, K], ``v`` [B, S, H, V] with H a multiple of G; ``decay`` [B, S, H] or [B, S, H, K]; ``beta``
    [B, S, H]; ``past`` [B, H, K, V]; ``mask`` of :func:`real`. Returns [B, S, H, V] and the state after the last token.
    """
    groups = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(groups, dim=2), k.repeat_interleave(groups, dim=2)
    decay = decay if decay.dim() == 4 else decay.unsqueeze(-1)
    state, answers = past, []
    for step in range(v.shape[1]):
        seen = mask[:, step, :, None]
        state = state * torch.exp(decay[:, step] * seen).unsqueeze(-1)
        update = v[:, step] * seen
        if beta is not None:
            update = (v[:, step] - torch.einsum("bhkv,bhk->bhv", state, k[:, step])) * beta[:, step, :, None] * seen
        state = state + k[:, step].unsqueeze(-1) * update.unsqueeze(-2)
        answers.append(scale * torch.einsum("bhkv,bhk->bhv", state, q[:, step]))
    return torch.stack(answers, dim=1), state.clone()


def l2norm(x: Tensor, eps: float) -> Tensor:
    """``x`` float32 [..., K] over the root of its sum of squares."""
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + eps)


def restore(x: Tensor, index: Tensor, keep: Tensor) -> Tensor:
    """Rows of ``x`` [B, S, K] where the caller had them, at ``index`` int64 [B, S]; only the last ``keep`` (int64 [1]; 0 is all) are returned."""
    wanted = index[:, -int(keep) :]
    return x.gather(1, wanted.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def tap(x: Tensor, name: str) -> Tensor:
    """Returns ``x`` unchanged; ``name`` labels it in the graph, for finding the first layer that differs."""
    return x.clone()


def _align_shape(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    lengths = ids.new_empty(ids.shape[0], dtype=torch.int32)
    return ids.new_empty(ids.shape), ids.new_empty(ids.shape), lengths, lengths.new_empty(1), ids.new_empty(ids.shape)


def _same_shape(x: Tensor, *others: object) -> Tensor:
    # How many rows ``restore`` keeps is known only at run time: the trace keeps all, the ONNX output has its own name.
    return x.new_empty(x.shape)


def _gqa_shape(
    q: Tensor, k: Tensor, v: Tensor, past_k: Tensor, past_v: Tensor, lengths: Tensor, total: Tensor,
    scale: float, softcap: float, window: int, sink: Tensor | None = None, bias: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    batch, heads, length, dim = q.shape
    cache = (batch, k.shape[1], past_k.shape[2] + length, dim)
    return q.new_empty((batch, length, heads, dim)), k.new_empty(cache), v.new_empty(cache)


def _relative_shape(positions: Tensor, mask: Tensor, table: Tensor) -> Tensor:
    return table.new_empty((positions.shape[0], table.shape[1], positions.shape[1], mask.shape[1]))


def _cross_shape(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    return q.new_empty((q.shape[0], q.shape[2], q.shape[1], v.shape[3]))


def _real_shape(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, length = ids.shape
    places = ids.new_empty((batch, length, 1)), ids.new_empty((batch, length, 1))
    return ids.new_empty((batch, length, 1), dtype=torch.float32), *places


def _conv_shape(x: Tensor, weight: Tensor, bias: Tensor | None, past: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), past.new_empty(past.shape)


def _scan_shape(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None, past: Tensor, *others: object
) -> tuple[Tensor, Tensor]:
    return v.new_empty(v.shape), past.new_empty(past.shape)


_SHAPES: dict[Callable[..., Any], Callable[..., Any]] = {
    align: _align_shape, gqa: _gqa_shape, real: _real_shape, conv: _conv_shape, scan: _scan_shape,
    relative: _relative_shape, cross: _cross_shape,
}  # fmt: skip
for _function in (align, rope, gqa, relative, cross, place, rmsnorm, experts, real, conv, scan, l2norm, restore, tap):
    LIBRARY.impl(_function.__name__, _function, "CPU")
    torch.library.register_fake(f"edgekit::{_function.__name__}", _SHAPES.get(_function, _same_shape))
