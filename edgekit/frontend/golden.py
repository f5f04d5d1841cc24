"""Golden vectors: what the original and the compressed PyTorch model answer on real input, written beside the model.

With them a machine without PyTorch can tell whether it computes the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

TOP = 64
"""Logits kept for every position: enough for the Kullback-Leibler divergence (the rest counts as one class)."""
DECODE_STEPS = 8
"""Tokens at the end of the text that parity feeds one by one, through the cache."""
ROWS = DECODE_STEPS + 1
TAP_ROWS = 4
CHUNK = 32

Arrays = dict[str, np.ndarray]


def text_vector(model: nn.Module, ids: np.ndarray) -> Arrays:
    """What a causal language model says about ``ids`` int64 [1, T].

    Returns ``nll`` float32 [T-1] (nats of each next token), ``logsumexp`` float32 [T], ``top_values`` float32 and
    ``top_indices`` int32 [T, 64] in descending order, and ``logits`` float32 [9, V] of the last positions.
    """
    tokens = torch.from_numpy(ids)
    with torch.no_grad():
        parts = [_summary(logits, tokens[0, start + 1 :]) for start, logits in _logits(model, tokens)]
    found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    found["logits"] = found["logits"][-ROWS:]
    return {name: tensor.contiguous().numpy().copy() for name, tensor in found.items()}


def _logits(model: Any, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first position, logits [n, V]) of a text, piece by piece: a whole text's logits can take more than the model.

    The body runs once over the whole text; the head, and what the model does after it, run on pieces of its result.
    """
    body = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if not isinstance(body, nn.Module) or body is model:
        yield 0, model(input_ids=tokens, use_cache=False).logits[0]
        return
    result = body(input_ids=tokens, use_cache=False, return_dict=True)
    hidden = result.last_hidden_state
    for start in range(0, tokens.shape[1], CHUNK):
        piece = type(result)(last_hidden_state=hidden[:, start : start + CHUNK])
        body.forward = lambda *args, piece=piece, **kwargs: piece
        try:
            yield start, model(input_ids=tokens[:, start : start + CHUNK], use_cache=False).logits[0]
        finally:
            del body.forward


def _summary(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What is kept of logits [n, V]; ``targets`` are the tokens that follow each of them, as far as there are any."""
    logits = logits.float()
    total, top = logits.logsumexp(-1), logits.topk(min(TOP, logits.shape[-1]), dim=-1)
    known = min(len(logits), len(targets))
    nll = total[:known] - logits[:known].gather(1, targets[:known, None])[:, 0]
    rows = logits[-ROWS:].clone()
    return {"nll": nll, "logsumexp": total, "top_values": top.values, "top_indices": top.indices.int(), "logits": rows}


def perplexity(nll: np.ndarray) -> float:
    """exp of the mean negative log-likelihood (nats)."""
    return float(np.exp(np.mean(nll, dtype=np.float64)))


class Taps:
    """Collects outputs of named modules during one forward pass; float32, at ``rows`` of the second axis if given."""

    def __init__(self, model: nn.Module, names: Sequence[str], rows: np.ndarray | None = None) -> None:
        modules = dict(model.named_modules())
        self.rows = None if rows is None else torch.from_numpy(rows.astype(np.int64))
        self.outputs: Arrays = {}
        self._hooks = [modules[n].register_forward_hook(self._hook(n)) for n in names if n in modules]

    def _hook(self, name: str) -> object:
        def hook(module: nn.Module, args: object, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, Tensor):
                kept = tensor if self.rows is None else tensor[0, self.rows]
                self.outputs[f"tap.{name}"] = kept.detach().float().contiguous().numpy().copy()

        return hook

    def __enter__(self) -> Taps:
        return self

    def __exit__(self, *exc: object) -> None:
        for hook in self._hooks:
            hook.remove()


def module_outputs(model: nn.Module, inputs: Mapping[str, np.ndarray], names: Sequence[str]) -> Arrays:
    """Outputs of any module by name: a bare tensor is the first, a tuple follows the order, a mapping its keys."""
    with torch.no_grad():
        out = model(**{key: torch.from_numpy(value) for key, value in inputs.items()})
    if isinstance(out, Tensor):
        out = (out,)
    pairs = ((n, out[n]) for n in names) if isinstance(out, Mapping) else zip(names, out, strict=False)
    return {name: value.detach().float().contiguous().numpy().copy() for name, value in pairs}
