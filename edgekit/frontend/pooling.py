"""Text encoders as edgekit exports them: hidden states, and the sentence embedding where the model declares one."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import nn

from edgekit.errors import SourceError, UnsupportedError
from edgekit.frontend.checkpoint import AGAIN
from edgekit.strict import read_json

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_MODES = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}


class TextEncoder(nn.Module):
    """A transformers encoder whose output is a plain dict of tensors.

    Output: ``last_hidden_state`` float [batch, sequence, hidden] and, when ``pooling`` is not None, ``sentence_embedding``
    float [batch, hidden]; without one the model's own outputs beside it, as ``pooler_output``.
    """

    def __init__(self, model: nn.Module, pooling: str | None = None, normalize: bool = False) -> None:
        """``pooling``: "mean", "cls", "max", "last" or None; ``normalize``: scale embeddings to length 1."""
        super().__init__()
        self.model = model
        self.pooling = pooling
        self.normalize = normalize
        parameters = inspect.signature(model.forward).parameters
        self.passed = tuple(name for name in TEXT_INPUTS if name in parameters)
        self.taken = tuple(
            n for n in TEXT_INPUTS if n in self.passed or (n == "attention_mask" and pooling is not None)
        )

    @property
    def config(self) -> Any:
        """The transformers configuration of the encoder."""
        return self.model.config

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """All int64 [batch, sequence], those that ``taken`` names; mask 1 = token, 0 = padding."""
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        output = self.model(**{name: given[name] for name in self.passed if given[name] is not None}, return_dict=True)
        if self.pooling is None or attention_mask is None:
            return {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
        hidden = output[0]
        embedding = _pool(hidden, attention_mask, self.pooling)
        if self.normalize:
            embedding = nn.functional.normalize(embedding, p=2.0, dim=1)
        return {"last_hidden_state": hidden, "sentence_embedding": embedding}


def declared_pooling(directory: Path) -> tuple[str | None, bool]:
    """Pooling and normalization that a sentence-transformers directory declares; (None, False) if it is none.

    Raises SourceError when modules.json or the pooling config is unreadable, UnsupportedError for a module other than
    Transformer, Pooling and Normalize, or an unknown pooling mode.
    """
    pooling: str | None = None
    normalize = False
    for kind, path in sentence_modules(directory):
        if kind == "Pooling":
            config = read_json(directory / path / "config.json", SourceError, AGAIN)
            modes = [mode for key, mode in _MODES.items() if config.get(key)]
            switched_on = [key for key, on in config.items() if key.startswith("pooling_mode") and on is True]
            unknown = [key for key in switched_on if key not in _MODES]
            if len(modes) != 1 or unknown:
                raise UnsupportedError(
                    f"{directory / path}/config.json: pooling {modes + unknown}; edgekit knows one of {', '.join(_MODES)}"
                )
            pooling = modes[0]
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedError(
                f"{directory}/modules.json: sentence-transformers module '{kind}' is not implemented; wrap the model "
                "in a 'package.module:factory'"
            )
    return pooling, normalize


def sentence_modules(directory: Path) -> list[tuple[str, str]]:
    """(class name, sub-directory) of each module in modules.json, in order; [] without one."""
    path = directory / "modules.json"
    if not path.is_file():
        return []
    modules = []
    for entry in read_json(path, SourceError, AGAIN, kind=list):
        kind, place = (entry.get("type"), entry.get("path", "")) if isinstance(entry, dict) else (None, None)
        plain = isinstance(place, str) and ".." not in Path(place).parts and not place.startswith(("/", "\\", "~"))
        if not isinstance(kind, str) or not isinstance(place, str) or not plain:
            raise SourceError(f"{path}: {str(entry)[:80]!r} is no module with a type and a path below it; {AGAIN}")
        modules.append((kind.rsplit(".", 1)[-1], place))
    return modules


def _pool(hidden: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    if mode == "mean":
        return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if mode == "cls":
        return hidden[:, 0]
    if mode == "max":
        return hidden.masked_fill(weights == 0, torch.finfo(hidden.dtype).min).amax(1)
    # the last position whose mask is 1, on either side of padding
    positions = torch.arange(hidden.shape[1], device=hidden.device)
    last = (mask * positions).argmax(1)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2])).squeeze(1)
