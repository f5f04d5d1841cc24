"""Recovery: simulated weights against numpy, what is trained, resume, refusals, and bundles that hold what was trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn

from edgekit.compression import compress, recovering
from edgekit.compression.settings import Compression, Data
from edgekit.errors import CheckFailed, RecipeError, SourceError, UnsupportedError, UsageError
from edgekit.evaluation import evaluate
from edgekit.exporter import export
from edgekit.frontend.loading import load_module
from edgekit.frontend.streamed import materialize
from edgekit.golden import packed_weights
from edgekit.low_rank import BranchedLinear
from edgekit.lowbit.formats import CODECS, PackedTensor, unpack_int4, unpack_t2
from edgekit.methods.examples import LANGUAGE, Examples
from edgekit.methods.layerwise import Calibration, compress_layers
from edgekit.methods.recover import FORMATS, Recovery, Rounding, codes_of, settle, simulate
from edgekit.methods.training import Training
from edgekit.parity import verify
from tests.support.tiny_bundle import write_tokenizer
from tests.support.tiny_decoders import build
from tests.unit.test_compress import CLASSIFIER, POINTS, encoder  # noqa: F401

TEXT = "It was the best of times, it was the worst of times; nobody had asked the clock, and so it said nothing.\n"
STEPS = 24


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with a tokenizer of bytes, and texts."""
    path = tmp_path_factory.mktemp("recover")
    build("Llama", {"vocab_size": 259, "num_hidden_layers": 2}).save_pretrained(path / "model")
    write_tokenizer(path / "model")
    (path / "train.txt").write_text(TEXT * 20)
    (path / "held.txt").write_text(
        "A clock that nobody asks says nothing; the fox and the dog have other worries, and no time. " * 4
    )
    return path


def settings(decoder: Path, recover: Recovery, **training: Any) -> Compression:
    return Compression(
        1,
        Data((str(decoder / "train.txt"),), (str(decoder / "held.txt"),), length=32),
        "recover",
        Training(**{"steps": STEPS, "batch_size": 8, "learning_rate": 1e-3, "checkpoint_every": 7, **training}),
        recover=recover,
        calibration=Calibration(examples=8),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_simulated_weight_against_numpy(name: str) -> None:
    recovery = Recovery(name, 16)
    low, high = recovery.codes
    generator = torch.Generator().manual_seed(1)
    weight, gradient = (torch.randn(5, 40, generator=generator) for _ in range(2))
    size = {"ternary": 128, "ternary-row": 40}.get(name, 16)
    steps = torch.rand(5, -(-40 // size), generator=generator) * (1 if high < 3 else 0.4) + 0.05
    rounding, master = Rounding(steps, size, (low, high), False), nn.Parameter(weight)
    made = rounding(master)
    made.backward(gradient)
    short = (rounding.steps.detach().double() / math.sqrt(size)).view(steps.shape)
    mantissa, exponent = np.frexp(short.numpy())
    bits = 16 if name.startswith("ternary") else 11
    wide = np.repeat(np.ldexp(np.rint(mantissa * 2**bits), exponent - bits), size, 1)[:, :40]
    ratio = weight.double().numpy() / wide
    codes = np.clip(np.rint(ratio), low, high)
    inside = (ratio > low - 0.5) & (ratio < high + 0.5)
    assert np.array_equal(made.detach().numpy(), (codes * wide).astype(np.float32)) and not inside.all()
    assert master.grad is not None and np.array_equal(master.grad.numpy(), gradient.numpy() * inside)
    of_each = gradient.numpy() * np.where(inside, codes - ratio, codes)
    wanted = [[part.sum() for part in np.split(row, range(size, 40, size))] for row in of_each]
    assert rounding.steps.grad is not None
    assert np.allclose(rounding.steps.grad.view(steps.shape), np.array(wanted) / math.sqrt(size), atol=1e-4)


@pytest.mark.parametrize("name", FORMATS)
def test_training_begins_where_rounding_ended(name: str) -> None:
    recovery = Recovery(name, 16)
    model: Any = build("Llama", {"vocab_size": 259, "num_hidden_layers": 1})
    original = {"model.layers.0.mlp.up_proj": model.model.layers[0].mlp.up_proj.weight.detach().clone()}
    batch = {"input_ids": torch.arange(3, 67).reshape(2, 32)}
    compress_layers(model, [batch], recovery.method())
    layer = model.model.layers[0].mlp.up_proj
    rounded, option = layer.weight.detach().clone(), recovery.method().option(model)
    assert option is not None
    codes, steps, size = codes_of(rounded, option, recovery)
    assert recovery.codes[0] <= int(codes.min()) and int(codes.max()) <= recovery.codes[1]
    assert torch.equal((codes * steps.repeat_interleave(size, 1)[:, : codes.shape[1]]), rounded)
    simulate(model, original, option, recovery)
    assert torch.allclose(layer.weight, rounded, rtol=2.0**-16, atol=0)  # int* are on the grid already
    assert name.startswith("ternary") or torch.equal(layer.weight, rounded)
    nearest = layer.parametrizations.weight.original.detach()
    assert float((nearest - original["model.layers.0.mlp.up_proj"]).abs().mean()) < float(
        (rounded - original["model.layers.0.mlp.up_proj"]).abs().mean()
    )


CASES = {
    "int4 weights": Recovery("int4", 32, top=32),
    "int4 scales": Recovery("int4", 32, "searched", "scales", top=32),
    "int3 branch": Recovery("int3", 16, train="branch", rank=4, top=32),
    "int2 weights": Recovery("int2", 16, "searched", top=0),
    "ternary weights": Recovery("ternary", top=32),
    "ternary-row scales": Recovery("ternary-row", train="scales", top=32),
}
RATES = {"int4 weights": 1e-5, "int4 scales": 2e-4, "int3 branch": 1e-4}


def reduced(codes: np.ndarray, scales: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes int [N, B, b] without a common divisor and with a positive step: a format may store {-2s, 0, 4s} as {-1, 0, 2}."""
    padded = np.zeros((len(codes), scales.shape[1] * block), np.int64)
    padded[:, : codes.shape[1]] = codes
    blocks = padded.reshape(len(codes), -1, block)
    divisor = np.maximum(np.gcd.reduce(blocks, axis=-1), 1) * np.where(scales < 0, -1, 1)
    nothing = (blocks == 0).all(-1)
    return blocks // divisor[..., None], np.where(nothing, 1, scales * divisor)


def stored(packed: PackedTensor, size: int) -> tuple[np.ndarray, np.ndarray]:
    codes = unpack_t2(packed) if packed.format == "t2" else unpack_int4(packed)
    assert packed.scales is not None
    scales = packed.scales.reshape(-1, 1) if packed.scales.ndim < 2 else packed.scales
    return reduced(codes, np.broadcast_to(scales, (len(codes), -(-codes.shape[1] // size))), size)


@pytest.mark.parametrize("case", CASES)
def test_the_bundle_holds_what_was_trained(
    decoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    recovery, simulated = CASES[case], dict[str, Tensor]()
    trained: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def watched(model: nn.Module) -> None:
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and "layers" in name:
                simulated[name] = layer.weight.detach().clone()
                if isinstance(
                    rounding := getattr(layer, "parametrizations", {"weight": [None]})["weight"][0], Rounding
                ):
                    short = steps_of(rounding)
                    wide = short.repeat_interleave(rounding.size, 1)[:, : layer.in_features]
                    codes = (layer.weight.detach() / wide).round().numpy().astype(np.int64)
                    assert rounding.codes[0] <= codes.min() and codes.max() <= rounding.codes[1]
                    trained[name] = reduced(codes, short.numpy(), rounding.size)
        settle(model)

    monkeypatch.setattr(recovering, "settle", watched)
    config = settings(decoder, recovery, learning_rate=RATES.get(case, 1e-3))
    result = compress(decoder / "model", config, tmp_path / "made")
    assert len(simulated) == 2 * (7 + (7 * 2 if recovery.rank else 0)) and len(trained) == (0 if recovery.rank else 14)
    original, rounded, last = result.history.evaluations
    assert original["kl"] == 0 < last["kl"] < rounded["kl"] and (rounded["step"], last["step"]) == (0, STEPS)
    assert any(line.startswith("kl: 0.0000 -> ") and line.count("->") == 2 for line in result.lines())
    assert len(result.layers) == 8 and all(0 < row["error"] < 1 for row in result.layers)

    bundle = export(result.exportable, result.recipe, tmp_path / "bundle")
    assert verify(bundle).parity.passed
    packed = {n: p for n, p in packed_weights(bundle)[0].items() if "layers" in n}
    assert packed
    for name, weight in packed.items():
        assert np.array_equal(CODECS[weight.format].dequantize(weight), simulated[name].numpy()), name
    for name, (codes, steps) in trained.items():
        codes_there, steps_there = stored(packed[name], codes.shape[-1])
        assert np.array_equal(codes_there, codes) and np.array_equal(steps_there, steps.astype(np.float32)), name

    # What was told while it was simulated, of what was saved, and of the bundle, whose activations are rounded too.
    text = decoder / "held.txt"
    tokenizer = Tokenizer.from_file(str(decoder / "model" / "tokenizer.json"))
    tokenizer.no_truncation()
    ids = torch.tensor(tokenizer.encode(text.read_text(), add_special_tokens=False).ids)
    held = Examples({"input_ids": ids[: len(ids) // 32 * 32].view(-1, 32)})
    module = materialize(load_module(result.exportable).module)
    assert LANGUAGE.evaluate(module, held)["loss"] == pytest.approx(last["loss"], rel=1e-6)
    saved, there = (r.texts[0].perplexity for r in evaluate([result.exportable, bundle], texts=[text], window=32).rows)
    assert math.log(there) == pytest.approx(math.log(saved), rel=2e-3)


def steps_of(rounding: Rounding) -> Tensor:
    return rounding.as_stored(rounding.steps.detach() / rounding.slowed).view(rounding.shape)


def weights(path: Path) -> dict[str, Tensor]:
    return materialize(load_module(str(path)).module).state_dict()


@pytest.mark.parametrize("train", ["weights", "scales", "branch"])
def test_only_what_is_asked_is_trained(decoder: Path, tmp_path: Path, train: str) -> None:
    recovery = Recovery("int3", 32, train=train, rank=4 if train == "branch" else 0, top=32)
    made = []
    for rate in (0.0, 1e-4):
        compress(decoder / "model", settings(decoder, recovery, learning_rate=rate), tmp_path / f"{rate}")
        made.append(weights(tmp_path / f"{rate}"))
    before, after = made
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    inner = {name for name in before if "proj" in name and "lora" not in name}
    branch, norms = ({name for name in before if part in name} for part in ("lora", "norm"))
    assert len(inner) == 14 and len(norms) == 5
    assert changed == {"weights": inner | norms, "scales": inner, "branch": branch}[train]
    if train == "scales":
        codes = [[codes_of(m[name], ("int4", 32), recovery)[0] for name in sorted(inner)] for m in made]
        assert all(torch.equal(a.abs(), b.abs()) for a, b in zip(*codes, strict=True))
    if train == "branch":
        query, key = (after[f"model.layers.0.self_attn.{name}_proj.lora_A.weight"] for name in "qk")
        module: Any = load_module(str(tmp_path / "0.0001")).module
        assert torch.equal(query, key) and isinstance(module.model.layers[0].self_attn.q_proj, BranchedLinear)


def test_a_classifier_whose_rows_fill_no_block(tmp_path: Path) -> None:
    config = Compression(
        1, Data((POINTS,)), "recover", Training(60, learning_rate=0.01), recover=Recovery("int2", 32, "searched", top=4)
    )
    result = compress(CLASSIFIER, config, tmp_path / "made")
    assert result.history.evaluations[-1]["kl"] < result.history.evaluations[1]["kl"]
    saved = load_file(tmp_path / "made" / "model.safetensors")
    bundle = export(result.exportable, result.recipe, tmp_path / "bundle")
    packed = packed_weights(bundle)[0]
    assert saved["0.weight"].shape == (64, 2) and sorted(packed) == ["0", "3", "5"]
    for name, weight in packed.items():
        assert np.array_equal(CODECS[weight.format].dequantize(weight), saved[f"{name}.weight"].numpy())


def stop(part: str, share: float) -> Callable[[str, float], None]:
    def told(what: str, done: float) -> None:
        if what.startswith(part) and done >= share:
            raise MemoryError

    return told


@pytest.mark.parametrize(
    "recovery", [Recovery("ternary", top=16), Recovery("int3", 32, train="branch", rank=2, top=16)]
)
def test_a_stopped_run_ends_with_the_same_bits(decoder: Path, tmp_path: Path, recovery: Recovery) -> None:
    config = settings(decoder, recovery, learning_rate=1e-4)
    whole = compress(decoder / "model", config, tmp_path / "whole")
    with pytest.raises(MemoryError):
        compress(decoder / "model", config, tmp_path / "parts", progress=stop("train: ", 0.7))
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"whole", ".parts.checkpoint", ".parts.answers", ".parts.start"}
    parts = compress(decoder / "model", config, tmp_path / "parts", resume=True)
    assert parts.history == whole.history and len(whole.history.losses) == STEPS and parts.layers == whole.layers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]
    files = [path.name for path in (tmp_path / "whole").glob("*.safetensors")]
    for one, two in ((load_file(tmp_path / name / file) for name in ("whole", "parts")) for file in files):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_answers_are_kept_and_asked_for_are_the_same(decoder: Path, tmp_path: Path) -> None:
    """All classes on disk (float16), and the original asked in each step: the same training up to that rounding."""
    told: list[str] = []
    lessons = [Recovery("int2", 32, train="scales", top=top, cache=str(tmp_path / "kept")) for top in (0, 259)]
    runs = [
        compress(decoder / "model", settings(decoder, lesson), tmp_path / f"{lesson.top}", progress=lambda what, _: told.append(what))
        for lesson in lessons
    ]  # fmt: skip
    assert runs[0].history.losses == pytest.approx(runs[1].history.losses, abs=2e-3)
    assert (tmp_path / "kept" / "cache.json").is_file() and "ask the original, 4 MB of answers" in told
    again = compress(
        decoder / "model", settings(decoder, lessons[1]), tmp_path / "again", progress=stop("ask the teacher", 0)
    )
    assert again.history == runs[1].history


def test_what_gets_worse_is_refused(decoder: Path, tmp_path: Path) -> None:
    recovery = Recovery("int4", 32, top=16)
    with pytest.raises(
        CheckFailed,
        match=r"held-out KL to the original 0\.\d+ as rounded, .* after step 24: .* lower learning_rate \(0\.1\)",
    ):
        compress(decoder / "model", settings(decoder, recovery, learning_rate=0.1), tmp_path / "out")
    assert (tmp_path / ".out.checkpoint" / "step-21").is_dir() and not (tmp_path / "out").exists()


def test_refusals(decoder: Path, tmp_path: Path, encoder: Path) -> None:  # noqa: F811
    with pytest.raises(
        UsageError, match=r"recover.format: 'int5' is not one of int4, int3, int2, ternary, ternary-row"
    ):
        Recovery("int5")
    with pytest.raises(UsageError, match=r"recover.start: 'gpqt' is not one of searched, gptq; did you mean 'gptq'"):
        Recovery(start="gpqt")
    with pytest.raises(UsageError, match=r"recover.train: 'all' is not one of weights, scales, branch"):
        Recovery(train="all")
    with pytest.raises(
        UsageError, match="recover: train 'branch', rank 0; give rank with train: branch, and only then"
    ):
        Recovery(train="branch")
    with pytest.raises(UsageError, match=r"gptq: bits 4, group_size 48; bits are 2 to 4, group sizes 0, 16, 32"):
        Recovery(group_size=48)
    with pytest.raises(UsageError, match=r"temperature 0\.?0?,"):
        Recovery(temperature=0)
    with pytest.raises(RecipeError, match=r"training.steps: 0, but recover works by training"):
        settings(decoder, Recovery(), steps=0)

    def refused(error: type[Exception], message: str, source: Path | None = None, **changes: Any) -> None:
        with pytest.raises(error, match=message):
            compress(source or decoder / "model", replace(settings(decoder, Recovery()), **changes), tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))

    refused(
        SourceError,
        r"compress.data: 65 examples to train with; recover needs 100 \(calibration.examples, training.batch_size\)",
        calibration=Calibration(examples=100),
    )
    refused(UnsupportedError, "gives embeddings, no classes; recover is for language models and classifiers", encoder)
    sure: Any = build("Llama", {"vocab_size": 259, "num_hidden_layers": 1})
    with torch.no_grad():
        sure.lm_head.weight.mul_(100)  # and wrong: the text is of other tokens than it was trained with
    sure.save_pretrained(tmp_path / "sure")
    write_tokenizer(tmp_path / "sure")
    refused(
        SourceError,
        r"the original loses \d+\.\d\d nats a token on it, guessing 5.56; give text that",
        tmp_path / "sure",
    )
    large: Any = build("Llama", {"vocab_size": 90, "num_hidden_layers": 1})
    large.save_pretrained(tmp_path / "small")
    write_tokenizer(tmp_path / "small")
    refused(
        SourceError, r"token ids \d+ to \d+, LlamaForCausalLM has 0 to 89; give data of its own", tmp_path / "small"
    )
