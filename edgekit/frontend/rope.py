"""Rope settings survive a change of transformers' major version, or the checkpoint is refused.

transformers 4 writes ``rope_theta`` and ``rope_scaling``; transformers 5 writes ``rope_parameters``, flat or nested
by layer type. Version 4.57 ignores ``rope_parameters`` silently: SmolLM2 (theta 100000) is then run with theta
10000 and its perplexity goes from 33.5 to 38.0 without a word. So:

- ``adapt`` rewrites a version 5 config for an installed version 4;
- ``check`` compares, after loading, what config.json says with the frequencies in the model's own buffers. It
  recovers theta from the first two frequencies and so trusts no loader. It does not recompute the tables of
  llama3, yarn and longrope; for those the kind and the factor are compared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgekit.errors import SourceError

# The older spellings of theta: key -> layer type it applies to ("" = every layer that has no own value).
_THETA_KEYS = {
    "rope_theta": "",
    "rotary_emb_base": "",
    "global_rope_theta": "full_attention",
    "rope_local_base_freq": "sliding_attention",
    "local_rope_theta": "sliding_attention",
}
# How transformers 4 spells theta, theta of sliding layers and rotated share, by model_type ("" = most).
_OLD_NAMES = {
    "": ("rope_theta", "rope_local_base_freq", "partial_rotary_factor"),
    "gpt_neox": ("rotary_emb_base", "rope_local_base_freq", "rotary_pct"),
    "modernbert": ("global_rope_theta", "local_rope_theta", "partial_rotary_factor"),
}
_PARTIAL_KEYS = ("partial_rotary_factor", "rotary_pct")
_SAME_KIND = {"su": "longrope", "mrope": "default", "axial": "default"}
# Kinds whose first two frequencies are a geometric step of theta, whatever else they do.
_GEOMETRIC = ("default", "linear", "dynamic")


@dataclass(frozen=True)
class Rope:
    """Rope of one layer type; None = not said."""

    theta: float | None = None
    kind: str | None = None
    factor: float | None = None
    partial: float | None = None


def adapt(raw: dict[str, Any], major: int) -> dict[str, Any]:
    """``raw``, a parsed config.json that is not changed, as transformers of version ``major`` must be given it."""
    parameters = raw.get("rope_parameters")
    if major >= 5 or not isinstance(parameters, dict):
        return raw
    nested = _nested(parameters)
    full = nested.get("full_attention", parameters)
    adapted = {key: value for key, value in raw.items() if key != "rope_parameters"}
    names = _OLD_NAMES.get(str(raw.get("model_type")), _OLD_NAMES[""])
    sliding = nested.get("sliding_attention", {})
    values = full.get("rope_theta"), sliding.get("rope_theta"), full.get("partial_rotary_factor")
    adapted.update({name: value for name, value in zip(names, values, strict=True) if value is not None})
    if full.get("rope_type", "default") != "default":
        adapted["rope_scaling"] = {k: v for k, v in full.items() if k not in ("rope_theta", "partial_rotary_factor")}
    return adapted


def declared(raw: dict[str, Any]) -> dict[str, Rope]:
    """What a config.json of any version says: layer type ("" = all) -> rope."""
    parameters = raw.get("rope_parameters") or {}
    nested = _nested(parameters)
    if nested:
        return {layer: _from_parameters(values) for layer, values in nested.items()}
    if parameters:
        return {"": _from_parameters({**_top_level_partial(raw), **parameters})}
    scaling = raw.get("rope_scaling") or {}
    result: dict[str, Rope] = {}
    for key, layer in _THETA_KEYS.items():
        if isinstance(raw.get(key), int | float):
            values = {**_top_level_partial(raw), "rope_theta": raw[key]}
            # Scaling is for long context, and so for the layers that see all of it.
            result[layer] = _from_parameters(values if layer == "sliding_attention" else {**values, **scaling})
    if len(result) > 1 and "" in result:
        result.setdefault("full_attention", result[""])
        del result[""]
    if not result and scaling:
        result[""] = _from_parameters({**_top_level_partial(raw), **scaling})
    return result


def check(raw: dict[str, Any], model: nn.Module, where: str, written_by: str, installed: str) -> None:
    """Compares ``raw``, config.json as it was in the checkpoint, with what the loaded ``model`` computes.

    ``where`` begins the message; ``written_by`` and ``installed`` are transformers versions that wrote it ("" if
    unknown) and loaded it. Raises SourceError when a value in ``raw`` is not the one in effect.
    """
    effective = dict(_effective(model)) or declared(_as_dict(getattr(model, "config", None)))
    for layer, said in declared(raw).items():
        for effective_layer, shown in _concerned(layer, effective):
            for field in ("theta", "kind", "factor", "partial"):
                want, have = getattr(said, field), getattr(shown, field)
                if want is None or have is None or _equal(want, have):
                    continue
                raise SourceError(
                    f"{where}: rope {field} {_of(effective_layer or layer)}is {want} (written by transformers "
                    f"{written_by or 'of unknown version'}), but transformers {installed} builds the model with "
                    f"{have}; install the transformers that wrote it, load it there and save it again"
                )


def _nested(parameters: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {layer: values for layer, values in parameters.items() if isinstance(values, dict)}


def _top_level_partial(raw: dict[str, Any]) -> dict[str, Any]:
    return next(({"partial_rotary_factor": raw[k]} for k in _PARTIAL_KEYS if raw.get(k) is not None), {})


def _from_parameters(values: dict[str, Any]) -> Rope:
    kind = values.get("rope_type", values.get("type", "default"))
    kind = _SAME_KIND.get(kind, kind)
    # A default rope has no factor, even where one is written down.
    factor = values.get("factor") if kind != "default" else None
    return Rope(values.get("rope_theta"), kind, factor, values.get("partial_rotary_factor"))


def _effective(model: nn.Module) -> Iterator[tuple[str, Rope]]:
    """Layer type -> rope, read from every ``inv_freq`` buffer."""
    config = getattr(model, "config", None)
    settings = declared(_as_dict(config))
    for path, module in model.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            if not name.endswith("inv_freq") or "original" in name or buffer.dim() != 1 or len(buffer) < 2:
                continue
            layer = name.removesuffix("inv_freq").removesuffix("_")
            if not layer and path.endswith("rotary_emb_local"):  # Gemma 3 in transformers 4
                layer = "sliding_attention"
            yield layer, _measured(buffer, layer, module, config, settings)


def _measured(buffer: torch.Tensor, layer: str, module: nn.Module, config: Any, settings: dict[str, Rope]) -> Rope:
    kinds = getattr(module, "rope_type", None)
    kind = kinds.get(layer) if isinstance(kinds, dict) else kinds
    kind = _SAME_KIND.get(kind, kind) if kind is not None else None
    setting = settings.get(layer) or settings.get("", Rope())
    frequencies = buffer.double()
    # frequency i is theta ** (-i / count), up to a common factor; in half precision it would not give theta back
    measurable = kind in _GEOMETRIC and buffer.dtype in (torch.float32, torch.float64)
    theta = float((frequencies[1] / frequencies[0]) ** -len(buffer)) if measurable else setting.theta
    factor = float(1 / frequencies[0]) if kind == "linear" else setting.factor
    # "proportional" gives the rest of the head frequencies of zero
    return Rope(theta, kind, factor, _partial(int(buffer.count_nonzero()), config, setting.partial))


def _partial(count: int, config: Any, said: float | None) -> float | None:
    """Share of each head that ``count`` frequencies rotate, ``said`` where that makes as many; None where heads are not all
    alike."""
    hidden, heads = getattr(config, "hidden_size", None), getattr(config, "num_attention_heads", None)
    if not isinstance(hidden, int) or not isinstance(heads, int) or hasattr(config, "qk_rope_head_dim"):
        return None
    try:
        head = getattr(config, "head_dim", None) or hidden // heads
    except RuntimeError:  # transformers' own kind: the size is another one in every kind of layer
        return None
    if said is not None and -(-int(head * said) // 2) == count:  # Moonshine's .9 of 36 are 32
        return said
    return 2 * count / int(head)


def _concerned(layer: str, effective: dict[str, Rope]) -> list[tuple[str, Rope]]:
    """Entries of ``effective`` for which a value said of ``layer`` must hold."""
    if layer in effective:
        return [(layer, effective[layer])]
    if layer == "":  # said once: it is the theta of the full-attention layers, the others may have their own default
        return [(k, v) for k, v in effective.items() if k == "full_attention"] or list(effective.items())
    return [(k, v) for k, v in effective.items() if k == ""]


def _as_dict(config: Any) -> dict[str, Any]:
    return dict(config.to_dict()) if hasattr(config, "to_dict") else {}


def _equal(want: Any, have: Any) -> bool:
    if isinstance(want, str) or isinstance(have, str):
        return bool(want == have)
    # float32 frequencies give theta to about 1e-5; a head's rotated part is rounded to whole pairs
    return abs(float(want) - float(have)) <= max(1e-3, 1e-3 * abs(float(want)))


def _of(layer: str) -> str:
    return f"of {layer} layers " if layer else ""
