"""LoRA adapters as PEFT saves them: merged or beside the weight, they give what W + scale B A gives; others are refused."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from edgekit.errors import EdgekitError, SourceError, UnsupportedError, UsageError
from edgekit.low_rank import FILE, attach, branched_layers, read_branches, take_branches, write_branches
from edgekit.methods.calibrate import groups_of
from edgekit.methods.lora import Lora, beside, merge, read_adapter
from tests.support.tiny_decoders import build

NAMES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj")
IDS = torch.arange(3, 19).reshape(2, 8)


def decoder() -> Any:
    return build("Llama", {})


def adapter(path: Path, rank: int = 4, **config: Any) -> dict[str, tuple[Tensor, Tensor]]:
    """A PEFT directory for the first layer; gives A and B by name."""
    path.mkdir()
    modules = dict(decoder().named_modules())
    random = torch.Generator().manual_seed(0)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    tensors: dict[str, Tensor] = {}
    for name in (f"model.layers.0.{part}" for part in NAMES):
        layer = modules[name]
        a = torch.randn(rank, layer.in_features, generator=random)
        b = torch.randn(layer.out_features, rank, generator=random)
        found[name] = a, b
        tensors |= {f"base_model.model.{name}.lora_A.weight": a, f"base_model.model.{name}.lora_B.weight": b}
    save_file(tensors, path / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "bias": "none", **config}
    (path / "adapter_config.json").write_text(json.dumps(settings))
    return found


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return cast(Tensor, model(IDS).logits)


@pytest.mark.parametrize(("config", "scales"), [
    ({}, (2.0, 2.0, 2.0)),
    ({"use_rslora": True}, (4.0, 4.0, 4.0)),
    ({"alpha_pattern": {"v_proj": 2}}, (2.0, 0.5, 2.0)),
    ({"r": 16, "rank_pattern": {".*": 4}}, (2.0, 2.0, 2.0)),  # the rank that counts is the tensor's
])  # fmt: skip
def test_merged(tmp_path: Path, config: dict[str, Any], scales: tuple[float, ...]) -> None:
    given = adapter(tmp_path / "lora", **config)
    model = decoder()
    modules = dict(model.named_modules())
    expected = {n: modules[n].weight + s * b @ a for (n, (a, b)), s in zip(given.items(), scales, strict=True)}
    merge(model, read_adapter(tmp_path / "lora"))
    for name, weight in expected.items():
        torch.testing.assert_close(modules[name].weight, weight)


def test_beside_is_merged(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    adapters = read_adapter(tmp_path / "lora")
    model, merged = decoder(), decoder()
    merge(merged, adapters)
    beside(model, adapters, groups_of(model, {"input_ids": IDS}), "fp16")
    torch.testing.assert_close(logits(model), logits(merged), rtol=0.02, atol=0.02)
    layers = branched_layers(model)
    assert set(layers) == set(adapters)
    query, value = (layers[f"model.layers.0.self_attn.{n}_proj"] for n in "qv")
    assert query.lora_A is not None and value.lora_A is not None and query.lora_A.weight is value.lora_A.weight
    assert query.lora_A.weight.shape[0] == 8  # both, one below the other
    with pytest.raises(SourceError, match=r"down_proj: has a low-rank branch already; merge the adapter before"):
        beside(model, adapters, [])


def test_branches_are_saved_and_read(tmp_path: Path) -> None:
    adapter(tmp_path / "lora")
    model = decoder()
    beside(model, read_adapter(tmp_path / "lora"), groups_of(model, {"input_ids": IDS}))
    attach(model, "model.layers.1.mlp.up_proj", {"second": torch.ones(96, 64)})
    expected, base = logits(model), copy.deepcopy(model)
    write_branches(*take_branches(base), tmp_path)
    assert not branched_layers(base)
    torch.testing.assert_close(logits(base), logits(decoder()))
    read_branches(base, tmp_path)
    assert torch.equal(logits(base), expected)
    assert len({id(p) for p in base.parameters()}) == len({id(p) for p in model.parameters()})  # A is shared again
    read_branches(base, tmp_path / "lora")  # none there: nothing happens


def test_damaged_branches(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(SourceError, match=message):
            read_branches(decoder(), tmp_path)

    def written(tensors: dict[str, Tensor], shared: str = "{}", version: str = "1") -> None:
        save_file(tensors, tmp_path / FILE, {"edgekit": version, "shared": shared})

    name, a, b = "model.layers.0.mlp.up_proj", torch.ones(2, 64), torch.ones(96, 2)
    (tmp_path / FILE).write_bytes(b"no tensors")
    refused(r"side_paths\.safetensors: damaged \(")
    written({f"{name}.second": torch.ones(96, 64)}, version="9")
    refused(r"version '9', expected '1'")
    written({f"{name}.third": a})
    refused(r"tensor '.*third' is none of second, lora_A, lora_B of a layer")
    written({"model.nothing.second": a})
    refused(r"'model\.nothing' is nothing in LlamaForCausalLM, not a linear layer")
    written({"model.embed_tokens.second": a})
    refused(r"'model\.embed_tokens' is a Embedding")
    for tensors in (
        {"lora_A": a}, {"lora_A": a, "lora_B": torch.ones(96, 3)}, {"lora_A": a, "lora_B": b.clone().fill_(math.nan)},
        {"second": torch.ones(64, 96)}, {"lora_A": torch.ones(2), "lora_B": b},
    ):  # fmt: skip
        written({f"{name}.{part}": tensor for part, tensor in tensors.items()})
        refused(r"up_proj' \[96, 64\] has \{.*\} beside it, which do not fit or are not finite")
    written({f"{name}.lora_B": b}, json.dumps({name: "model.layers.1.mlp.up_proj"}))
    refused(r"shares the lora_A of 'model\.layers\.1\.mlp\.up_proj', and one of them is not there")


def test_refused_adapters(tmp_path: Path) -> None:
    def refused(kind: type[EdgekitError], message: str, **config: Any) -> None:
        path = tmp_path / f"lora{len(list(tmp_path.iterdir()))}"
        adapter(path, **config)
        with pytest.raises(kind, match=message):
            merge(decoder(), read_adapter(path))

    refused(UnsupportedError, "peft_type is 'LOHA', not 'LORA'", peft_type="LOHA")
    refused(
        UnsupportedError,
        r"use_dora is set \(True\), which is no plain LoRA; merge the adapter with PEFT",
        use_dora=True,
    )
    refused(UnsupportedError, r"bias is set \('all'\)", bias="all")
    refused(UnsupportedError, r"init_lora_weights is set \('pissa_niter_4'\)", init_lora_weights="pissa_niter_4")
    refused(UnsupportedError, "use_qalora is set", use_qalora=True)
    refused(SourceError, "lora_alpha is None, not a number", lora_alpha=None)
    refused(SourceError, "alpha_pattern is a list; expected names with numbers", alpha_pattern=[1])
    refused(SourceError, r"alpha_pattern '\(' is no regular expression", alpha_pattern={"(": 1})
    refused(SourceError, "has rank 0; there is nothing to add", rank=0)
    with pytest.raises(SourceError, match=r"adapter_config\.json: not readable as JSON \(No such file"):
        read_adapter(tmp_path / "nowhere")
    path = tmp_path / "last"
    adapter(path)
    save_file({"base_model.model.x.lora_embedding_A": torch.ones(2, 2)}, path / "adapter_model.safetensors")
    with pytest.raises(UnsupportedError, match=r"'base_model\.model\.x\.lora_embedding_A' is no lora_A or lora_B"):
        read_adapter(path)
    save_file({"base_model.model.x.lora_A.weight": torch.ones(2, 2)}, path / "adapter_model.safetensors")
    with pytest.raises(
        SourceError, match=r"x has \{'lora_A': \[2, 2\]\}; expected lora_A \[r, K\] and lora_B \[N, r\]"
    ):
        read_adapter(path)
    broken = {"x.lora_A.weight": torch.ones(2, 5), "x.lora_B.weight": torch.full((3, 2), math.nan)}
    save_file(broken, path / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"'x\.lora_B\.weight' holds NaN or infinity"):
        read_adapter(path)
    pair = {"x.lora_A.weight": torch.ones(2, 5), "x.lora_B.weight": torch.ones(3, 2)}
    save_file(pair, path / "adapter_model.safetensors")
    with pytest.raises(SourceError, match=r"adapter: 'x' is nothing in Linear; it belongs to another model"):
        merge(nn.Linear(5, 3), read_adapter(path))
    with pytest.raises(SourceError, match=r"adapter: 'x' is for \[3, 5\], the model has \[3, 4\]"):
        merge(nn.ModuleDict({"x": nn.Linear(4, 3)}), read_adapter(path))
    tied = nn.ModuleDict({"table": nn.Embedding(3, 5), "x": nn.Linear(5, 3)})
    tied["x"].weight = tied["table"].weight
    with pytest.raises(UnsupportedError, match="x: shares its weight with table, which merging would change"):
        merge(tied, read_adapter(path))
    with pytest.raises(UsageError, match=r"lora\.format: 'int2' is not one of int8, int4, fp16"):
        Lora("x", format="int2")
