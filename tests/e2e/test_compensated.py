"""Compensated models end to end: compressed by configuration, exported beside their weights, verified."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compression import compress
from edgekit.compression.settings import Compression, Data
from edgekit.errors import CheckFailed, RecipeError, SourceError, UnsupportedError, UsageError
from edgekit.exporter import export
from edgekit.frontend.loading import load_module
from edgekit.frontend.streamed import materialize
from edgekit.golden import packed_weights
from edgekit.low_rank import BranchedLinear, fold_branches
from edgekit.lowbit.formats import CODECS
from edgekit.methods import layerwise
from edgekit.methods.eora import Compensation
from edgekit.methods.gptq import Gptq
from edgekit.methods.layerwise import Calibration
from edgekit.methods.lora import Lora
from edgekit.methods.sensitivity import Scan
from edgekit.methods.ternarize import Ternary, ternarize
from edgekit.parity import verify
from edgekit.recipe import Recipe
from tests.unit.test_compress import SENTENCES, decoder, encoder  # noqa: F401
from tests.unit.test_lora import adapter

TEXT = "It was the best of times, it was the worst of times; nobody had asked the clock, and so it said nothing.\n" * 9


def settings(tmp_path: Path, method: str, **sections: Any) -> Compression:
    (tmp_path / "a.txt").write_text(sections.pop("text", TEXT))
    data = Data((str(tmp_path / "a.txt"),), length=16)
    calibration = Calibration(examples=8, batch=4, exclude=sections.pop("exclude", ()))
    return Compression(1, data, method, calibration=calibration, **sections)


def exact(bundle: Bundle, directory: Path) -> int:
    """Every stored weight of a linear layer is the compressed model's, bit for bit; how many there are."""
    module = load_module(str(directory)).module
    assert module is not None
    modules = dict(materialize(module).named_modules())
    found = {n: p for n, p in packed_weights(bundle)[0].items() if "embed" not in n and n != "lm_head"}
    for name, packed in found.items():
        assert np.array_equal(CODECS[packed.format].dequantize(packed), modules[name].weight.numpy()), name
    return len(found)


def operators(bundle: Bundle) -> Counter[str]:
    return Counter(node.op_type for node in ir.load(bundle.directory / "model.onnx").graph)


def test_two_planes_and_a_low_rank_branch(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    config = settings(
        tmp_path, "eora", eora=Compensation("ternarize", rank=6), ternarize=Ternary(planes=2), text=TEXT * 2
    )
    result = compress(str(decoder), config, tmp_path / "made")
    assert len(result.layers) == 4
    assert all(row["compensated"] < row["error"] for row in result.layers)
    saved = json.loads((tmp_path / "made" / "compress.json").read_text())
    assert saved["settings"]["eora"]["rank"] == 6 and saved["recipe"].endswith("recipe.yaml")
    module: Any = load_module(str(tmp_path / "made")).module
    assert isinstance(module.model.layers[0].self_attn.q_proj, BranchedLinear)
    bundle = export(str(tmp_path / "made"), saved["recipe"], tmp_path / "bundle", abis=["linux-x86_64"])
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    assert exact(bundle, tmp_path / "made") == 7 * 4
    # q/k/v: two planes, one A, one B; gate and up share A, and no plane of theirs is split.
    assert operators(bundle)["TernaryMatMul"] == 10
    assert operators(bundle)["Int8BlockMatMul"] == 8 + 1
    first = next(layer for layer in bundle.manifest.layers if layer.name.endswith("q_proj"))
    assert first.format == "t2" and first.shape == (32, 32)


def test_gptq_of_an_encoder_with_eora(tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    config = settings(
        tmp_path, "eora", eora=Compensation("gptq", rank=4, format="int4"), gptq=Gptq(3, 16), text=SENTENCES
    )
    result = compress(str(encoder), config, tmp_path / "made")
    assert result.history.evaluations[-1]["cosine"] > 0.8
    bundle = export(str(tmp_path / "made"), result.recipe, tmp_path / "bundle", samples=tmp_path / "a.txt")
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    assert exact(bundle, tmp_path / "made") == 6 * 3 - 2  # the A of query, key and value is one node
    assert operators(bundle)["Int4MatMul"] == 3 * 4  # q/k/v, output, intermediate and output, each with an A and a B


def test_an_adapter_beside_rounded_weights(tmp_path: Path) -> None:
    from tests.support.tiny_decoders import build

    adapter(tmp_path / "lora")
    build("Llama", {}).save_pretrained(tmp_path / "model")
    config = Compression(1, None, "lora", lora=Lora(str(tmp_path / "lora")))
    result = compress(str(tmp_path / "model"), config, tmp_path / "made")
    merged = compress(
        str(tmp_path / "model"), Compression(1, None, "lora", lora=Lora(str(tmp_path / "lora"), merge=True)), tmp_path / "one"
    )  # fmt: skip
    ids = torch.arange(3, 19).reshape(2, 8)
    with torch.no_grad():
        first, second = (materialize(load_module(r.exportable).module)(ids).logits for r in (result, merged))
    assert float((first - second).square().mean() / second.square().mean()) < 0.02
    bundle = export(result.exportable, result.recipe, tmp_path / "bundle")
    assert verify(bundle).parity.passed


def test_compensation_of_an_earlier_compression(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    pruned = compress(str(decoder), Compression(1, method="2:4", training=_none()), tmp_path / "pruned")
    config = settings(tmp_path, "eora", eora=Compensation("none", original=str(decoder), rank=8))
    result = compress(pruned.exportable, config, tmp_path / "made")
    assert all(0 < row["compensated"] < 0.8 * row["error"] for row in result.layers)
    before, made = weights(pruned.exportable), weights(result.exportable)
    assert torch.equal(before["model.layers.0.mlp.up_proj.weight"], made["model.layers.0.mlp.up_proj.weight"])


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return materialize(load_module(str(path)).module).state_dict()


def test_two_planes_are_kept_and_compensated(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    two = compress(str(decoder), settings(tmp_path, "ternarize", ternarize=Ternary(planes=2)), tmp_path / "two")
    config = settings(tmp_path, "eora", eora=Compensation("none", original=str(decoder), rank=8))
    result = compress(two.exportable, config, tmp_path / "made")
    before, after = weights(tmp_path / "two"), weights(tmp_path / "made")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    assert any(name.endswith("second.weight") for name in before) and any("lora_A" in name for name in after)
    assert all(0 < row["compensated"] < row["error"] for row in result.layers)
    bundle = export(result.exportable, result.recipe, tmp_path / "bundle", abis=["linux-x86_64"])
    assert exact(bundle, tmp_path / "made") == 7 * 4
    assert verify(bundle).parity.passed
    down = [layer for layer in bundle.manifest.layers if "down_proj" in layer.name]
    row = next(row for row in result.layers if "down_proj" in row["layer"])
    assert len(down) == 4 and row["bytes"] == sum(layer.bits_per_weight * layer.weights / 8 for layer in down)
    with pytest.raises(UnsupportedError, match=r"q_proj: has a low-rank branch already"):
        compress(result.exportable, config, tmp_path / "again")


def test_compressed_again_from_the_sum_of_all_parts(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    config = settings(tmp_path, "eora", eora=Compensation("ternarize", rank=4), ternarize=Ternary(planes=2))
    first = compress(str(decoder), config, tmp_path / "first")
    module = materialize(load_module(first.exportable).module)
    fold_branches(module)
    module.save_pretrained(tmp_path / "sum")  # type: ignore[operator]
    for asset in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(decoder / asset, tmp_path / "sum")
    config = settings(tmp_path, "gptq", gptq=Gptq(4, 16))
    for source, name in ((first.exportable, "beside"), (str(tmp_path / "sum"), "plain")):
        compress(source, config, tmp_path / name)
    beside, plain = weights(tmp_path / "beside"), weights(tmp_path / "plain")
    assert beside.keys() == plain.keys() and all(torch.equal(beside[name], plain[name]) for name in plain)


def test_rounded_weights_keep_their_formats_beside_a_new_path(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    """Of each its own: int4 as GPTQ left it, and what was left out of it at 8 bits."""
    config = settings(tmp_path, "gptq", gptq=Gptq(4, 16), exclude=("*.down_proj",))
    rounded = compress(str(decoder), config, tmp_path / "rounded")
    config = settings(tmp_path, "eora", eora=Compensation("none", original=str(decoder), rank=4, format="fp16"))
    result = compress(rounded.exportable, config, tmp_path / "made")
    formats = {rule.match: (rule.format, rule.block_size) for rule in Recipe.load(result.recipe).rules}
    assert formats["model.layers.0.mlp.up_proj"] == ("int4-fp16", 16) and formats["*.lora_A"] == ("fp16", 0)
    assert formats["model.layers.0.mlp.down_proj"] == ("int8", 0)
    bundle = export(result.exportable, result.recipe, tmp_path / "bundle")
    named = {layer.name.removeprefix("model.layers.0."): layer for layer in bundle.manifest.layers}
    assert named["mlp.up_proj"].format == "int4-fp16" and named["mlp.down_proj"].format == "int8"
    assert verify(bundle).parity.passed


@pytest.mark.parametrize("form", ["int8", "int4", "fp16"])
def test_an_adapter_keeps_its_format(tmp_path: Path, form: str) -> None:
    from tests.support.tiny_decoders import build

    adapter(tmp_path / "lora")
    build("Llama", {}).save_pretrained(tmp_path / "model")
    config = Compression(1, None, "lora", lora=Lora(str(tmp_path / "lora"), format=form))
    result = compress(str(tmp_path / "model"), config, tmp_path / "made")
    bundle = export(result.exportable, result.recipe, tmp_path / "bundle")
    parts = {n: p for n, p in packed_weights(bundle)[0].items() if "lora" in n}
    modules = dict(materialize(load_module(result.exportable).module).named_modules())
    assert len(parts) == 2 * 3 and {packed.format for packed in parts.values()} == {form}
    for name, packed in parts.items():
        assert np.array_equal(CODECS[form].dequantize(packed), modules[name].weight.detach().numpy()), name


def test_an_interrupted_run_goes_on_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(tmp_path / "model")
    config = settings(tmp_path, "eora", eora=Compensation("ternarize", rank=4), ternarize=Ternary(planes=2))

    def dies(what: str, share: float) -> None:
        if what == "calibrate" and 0.5 < share < 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(model, config, tmp_path / "made", progress=dies)
    left = tmp_path / ".made.checkpoint"
    assert sorted(p.name for p in left.iterdir()) == ["model.layers.0", "model.layers.1"]
    with pytest.raises(UsageError, match="a run was interrupted here; --resume goes on with it"):
        compress(model, config, tmp_path / "made")
    changed = settings(tmp_path, "eora", eora=Compensation("ternarize", rank=5), ternarize=Ternary(planes=2))
    with pytest.raises(UsageError, match=r"eora\.rank is 5 now and was 4; resume with the settings"):
        compress(model, changed, tmp_path / "made", resume=True)
    rounded: list[Any] = []

    def counted(*given: Any) -> Any:
        rounded.append(given)
        return ternarize(*given)

    monkeypatch.setattr(layerwise, "ternarize", counted)
    resumed = compress(model, config, tmp_path / "made", resume=True)
    assert len(rounded) == 7  # the layers of the third block alone
    whole = compress(model, config, tmp_path / "whole")
    assert not left.exists() and resumed.layers == whole.layers and len(whole.layers) == 4 * 3
    one, other = weights(tmp_path / "made"), weights(tmp_path / "whole")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_resuming_what_another_run_left(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    (tmp_path / ".made.checkpoint" / "step-7").mkdir(parents=True)
    with pytest.raises(
        UsageError, match=r"\.made\.checkpoint: of a training; resume with the method that it began with"
    ):
        compress(str(decoder), settings(tmp_path, "gptq"), tmp_path / "made", resume=True)
    assert [path.name for path in (tmp_path / ".made.checkpoint").iterdir()] == ["step-7"]
    with pytest.raises(UsageError, match="--resume: sensitivity keeps no checkpoint; leave --resume out"):
        config = settings(tmp_path, "sensitivity", sensitivity=Scan(bits=12, examples=4))
        compress(str(decoder), config, tmp_path / "made", resume=True)


def test_models_that_give_no_numbers(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    module: Any = materialize(load_module(str(decoder)).module)
    module.model.norm.weight.data[0] = torch.nan
    module.save_pretrained(tmp_path / "nan")
    shutil.copy(decoder / "tokenizer.json", tmp_path / "nan")
    with pytest.raises(
        CheckFailed, match=r"nan: its scores on the held-out examples are \{.*nan.*a model must give finite"
    ):
        compress(str(tmp_path / "nan"), settings(tmp_path, "gptq"), tmp_path / "made")
    (tmp_path / "nan" / "tokenizer.json").write_text("{}")
    with pytest.raises(SourceError, match=r"tokenizer\.json: not a readable tokenizer \("):
        compress(str(tmp_path / "nan"), settings(tmp_path, "gptq"), tmp_path / "made")
    with pytest.raises(UsageError, match="sensitivity: bits inf"):
        Scan(bits=float("inf"))


class Duel(nn.Module):
    """Two heads whose sums broadcast one column over eight: no sums of low-rank branches."""

    def __init__(self, swapped: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(16, 64)
        self.values = nn.ModuleList(nn.Linear(64, 1) for _ in range(2))
        self.advantages = nn.ModuleList(nn.Linear(64, 8) for _ in range(2))
        self.swapped = swapped

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.relu(self.body(x))
        one, two = ((v(h), a(h)) for v, a in zip(self.values, self.advantages, strict=True))
        return torch.relu(one[0] + one[1]), torch.relu(two[1] + two[0] if self.swapped else two[0] + two[1])


def duel() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return Duel(swapped=False), (torch.randn(2, 16),)


def swapped_duel() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return Duel(swapped=True), (torch.randn(2, 16),)


@pytest.mark.parametrize("factory", ["duel", "swapped_duel"])
def test_sums_that_broadcast_are_left_alone(tmp_path: Path, factory: str) -> None:
    for recipe in ("fp32", "int8"):
        bundle = export(f"tests.e2e.test_compensated:{factory}", recipe, tmp_path / recipe, abis=[])
        assert verify(bundle).parity.passed


def tiny(path: Path) -> str:
    """A Llama of three blocks with a tokenizer of bytes."""
    from tests.support.tiny_bundle import write_tokenizer
    from tests.support.tiny_decoders import build

    build("Llama", {"vocab_size": 259, "num_hidden_layers": 3}).save_pretrained(path)
    write_tokenizer(path)
    return str(path)


def _none() -> Any:
    from edgekit.methods.training import Training

    return Training(steps=0)


def test_formats_chosen_layer_by_layer(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    result = compress(
        str(decoder), settings(tmp_path, "sensitivity", sensitivity=Scan(bits=12, examples=4)), tmp_path / "made"
    )
    sizes = [(row["bytes"], row["layer"]) for row in result.layers]
    assert len(sizes) == 4
    assert sum(size for size, _ in sizes) <= 12 / 8 * (3 * 32 * 32 + 3 * 32 * 64)
    rules = Recipe.load(result.recipe).rules
    assert [rule.match for rule in rules[:-2]] == [name for _, group in sizes for name in group.split("+")]


def test_refusals(tmp_path: Path, decoder: Path) -> None:  # noqa: F811
    for sections, message in (
        ({"method": "eora"}, r"compress\.eora: missing; give for example \{of: gptq, rank: 32\}"),
        ({"method": "lora"}, r"compress\.lora: missing; give for example \{adapter: DIRECTORY\}"),
        ({"method": "sensitivity"}, r"compress\.sensitivity: missing; give for example \{bits: 5\}"),
        ({"method": "gptq"}, r"compress\.data: missing; gptq needs examples to calibrate with"),
    ):
        with pytest.raises(RecipeError, match=message):
            Compression(1, **cast(dict[str, Any], sections))
    with pytest.raises(UsageError, match=r"exclude: '\*nothing\*' fits no layer"):
        config = settings(tmp_path, "gptq")
        object.__setattr__(config, "calibration", Calibration(exclude=("*nothing*",)))
        compress(str(decoder), config, tmp_path / "made")
    with pytest.raises(SourceError, match=r"has no linear layer 'model\.layers"):
        from tests.support.tiny_decoders import build

        build("Llama", {}).save_pretrained(tmp_path / "other")
        config = settings(tmp_path, "eora", eora=Compensation("none", original=str(tmp_path / "other"), rank=2))
        compress(str(decoder), config, tmp_path / "made")
    assert not (tmp_path / "made").exists()
