"""BitNet training: its formulas, the ramp and the schedule, what is saved, and that what is exported says the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from edgekit.errors import SourceError, UnsupportedError, UsageError
from edgekit.frontend.loading import load_module
from edgekit.frontend.streamed import materialize
from edgekit.methods.bitnet import (
    FORMS,
    BitLinear,
    BitNet,
    BitNetCallback,
    BitNetTraining,
    bit_linear,
    bit_linears,
    codes,
    convert,
    int8_activations,
    ternary_weights,
)  # fmt: skip
from edgekit.methods.bitnet_checkpoint import pack, save
from edgekit.methods.examples import LANGUAGE, Examples
from edgekit.methods.resume import Checkpoint
from edgekit.methods.training import Run, Training
from tests.support.tiny_decoders import build

SIZES = {"hidden_size": 64, "intermediate_size": 128, "tie_word_embeddings": True, "vocab_size": 97}

CLOSE = 0.02
"""Of the largest logit: where a last bit of a sum turns an int8 code, no more."""


@pytest.fixture(autouse=True)
def no_compiler() -> Iterator[None]:
    """transformers compiles BitNet's packing; that takes a minute and a C++ compiler."""
    with torch._dynamo.config.patch(disable=True):
        yield


def examples(count: int = 24, length: int = 16) -> Examples:
    """Sequences with a rule: each token is the last one plus three."""
    starts = torch.randint(0, 97, (count, 1), generator=torch.Generator().manual_seed(1))
    return Examples({"input_ids": (starts + 3 * torch.arange(length)) % 97})


def trained(ternary: BitNet = BitNet(), steps: int = 12, prefix: str = "Llama") -> Any:  # noqa: B008
    model = convert(build(prefix, SIZES), ternary)
    training = Training(steps=steps, batch_size=8, learning_rate=3e-3, schedule="two-stage", weight_decay=0.1)
    Run(model, LANGUAGE, examples(), training, constraint=BitNetTraining(model, ternary)).go()
    return model


@given(st.integers(1, 9), st.integers(1, 40), st.integers(0, 1000))
def test_rounding_against_numpy(rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    weight = random.normal(0, 0.05, (rows, columns)).astype(np.float32)
    scale = max(float(np.abs(weight.astype(np.float64)).mean()), 1e-5)
    want = np.clip(np.rint(weight / scale), -1, 1)
    found = codes(torch.from_numpy(weight)).numpy()
    clear = np.abs(np.abs(weight / scale) - 0.5) > 1e-5  # elsewhere a last bit decides
    assert (found == want)[clear].all()
    np.testing.assert_allclose(
        ternary_weights(torch.from_numpy(weight)).numpy()[clear], (want * scale)[clear], rtol=1e-5
    )
    x = random.normal(0, 3, (rows, columns)).astype(np.float32)
    largest = np.abs(x).max(1, keepdims=True)
    rounded = int8_activations(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(rounded / largest * 127, np.rint(x / largest * 127), atol=0.5001)
    assert np.abs(rounded - x).max() <= (largest / 254).max() * 1.001
    assert len(np.unique((rounded[0] * 127 / largest[0]).round())) <= 255


def test_the_layer_is_transformers_own_bit_for_bit() -> None:
    from transformers.integrations.bitnet import AutoBitLinear

    torch.manual_seed(0)
    theirs = AutoBitLinear(48, 20, bias=True, online_quant=True)
    ours = bit_linear(theirs).eval()
    x = torch.randn(3, 5, 48)
    assert torch.equal(ours(x), theirs(x))


def test_gradients_go_straight_through() -> None:
    torch.manual_seed(0)
    layer = bit_linear(nn.Linear(6, 4))
    x = torch.randn(3, 6, requires_grad=True)
    above = torch.randn(3, 4)
    (layer(x) * above).sum().backward()
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad, above.T @ int8_activations(x).detach(), atol=1e-6)
    assert x.grad is not None and torch.allclose(x.grad, above @ ternary_weights(layer.weight).detach(), atol=1e-6)


def test_the_ramp_goes_from_float_to_ternary() -> None:
    torch.manual_seed(0)
    plain = nn.Linear(16, 8)
    model = nn.Sequential(bit_linear(plain), nn.Linear(8, 2))
    ramp, x = BitNetTraining(model, BitNet(ramp=4)), torch.randn(5, 16)
    assert torch.allclose(model[0](x), plain(x))
    ramp.step()
    half = torch.nn.functional.linear(
        x + 0.25 * (int8_activations(x) - x),
        plain.weight + 0.25 * (ternary_weights(plain.weight) - plain.weight),
        plain.bias,
    )
    assert torch.allclose(model[0](x), half, atol=1e-6)
    assert not torch.allclose(model.eval()[0](x), half, atol=1e-3)  # eval is always ternary
    final = model[0](x)
    for _ in range(3):
        ramp.step()
    assert torch.equal(model.train()[0](x), final)
    assert ramp.zeros() == float((codes(plain.weight) == 0).float().mean())
    assert [BitNet(ramp=4).amount_at(i) for i in (0, 1, 4, 9)] == [0, 0.25, 1, 1] and BitNet().amount_at(0) == 1
    ramp = BitNetTraining(model, BitNet(ramp=9))
    ramp.hold()
    assert isinstance(model[0], BitLinear) and model[0].amount == 1


def test_two_stages() -> None:
    """Linear decay from each peak towards the end; weight decay ends at half time."""
    training = Training(
        steps=10, learning_rate=1.2e-3, second_learning_rate=8e-4, schedule="two-stage", weight_decay=0.1
    )
    assert [round(training.rate_at(i) * 1e4, 6) for i in range(10)] == [12, 10.8, 9.6, 8.4, 7.2, 4, 3.2, 2.4, 1.6, 0.8]
    assert [training.decay_at(i) for i in (0, 4, 5, 9)] == [0.1, 0.1, 0, 0]
    assert Training(steps=4, weight_decay=0.1).decay_at(3) == 0.1
    default = Training(steps=10, learning_rate=1.2e-3, schedule="two-stage", warmup=2)
    assert default.rate_at(5) == pytest.approx(8e-4 * 5 / 8) and default.rate_at(0) == pytest.approx(6e-4)


@pytest.mark.parametrize(
    ("prefix", "settings", "ternary", "message"),
    [
        ("GPT2", {"n_embd": 64, "n_layer": 1, "n_head": 4, "vocab_size": 97}, BitNet(),
         r"transformer\.h\.0\.attn\.c_attn\.weight: a Conv1D \[64, 192\] is no nn\.Linear, which BitNet needs"),
        ("Mixtral", {"num_local_experts": 2, "num_experts_per_tok": 1}, BitNet(), r"model\.layers\.0\.mlp\.\w+\.\w+: a \w+ \["),
        ("Gemma", {"head_dim": 16}, BitNet(sub_norms="block"),
         "GemmaForCausalLM has blocks of its own; sub_norms: block is for llama, mistral, bitnet; use sub_norms: layer or none"),
        ("Mistral", {"sliding_window": 8}, BitNet(sub_norms="block"), "MistralForCausalLM has sliding-window attention"),
        ("Llama", {"mlp_bias": True}, BitNet(sub_norms="block"),
         r"model\.layers\.0\.mlp\.gate_proj\.bias: BitNet's blocks have no such parameter of \[96\]"),
    ],
)  # fmt: skip
def test_models_that_bitnet_has_no_form_for(
    prefix: str, settings: dict[str, Any], ternary: BitNet, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message):
        convert(build(prefix, settings), ternary)


def test_other_refusals(tmp_path: Path) -> None:
    model = convert(build("Llama", SIZES), BitNet())
    with pytest.raises(UnsupportedError, match=r"layers\.0\.self_attn\.q_proj: is ternary already"):
        convert(model, BitNet())
    with pytest.raises(
        UsageError, match=r"exclude: '\*gate' fits no linear layer; linear layers are named like model\.layers"
    ):
        convert(build("Llama", SIZES), BitNet(exclude=("*gate",)))
    with pytest.raises(UsageError, match="has no BitLinear; convert it first"):
        bit_linears(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="ramp: -1 is negative"):
        BitNet(ramp=-1)
    with pytest.raises(UsageError, match="sub_norms: 'all' is not one of none, block, layer"):
        BitNet(sub_norms="all")
    with pytest.raises(UsageError, match="form: 'gguf' is not one of online, autobitlinear, bitlinear"):
        save(model, tmp_path, "gguf")
    odd = convert(build("Llama", {**SIZES, "intermediate_size": 126}), BitNet())
    with pytest.raises(UnsupportedError, match=r"mlp\.gate_proj: 126 rows do not fill bytes of four"):
        save(odd, tmp_path, "bitlinear")


def test_packing_as_documented() -> None:
    column = torch.tensor([-1, 0, 1, 1, 0, 1, -1, 0])[:, None]
    assert [f"{byte:08b}" for byte in pack(column).flatten().tolist()] == ["00011000", "01101001"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sub_norms", ["none", "block", "layer"])
def test_transformers_and_edgekit_load_what_is_saved(form: str, sub_norms: str, tmp_path: Path) -> None:
    import transformers

    model = trained(BitNet(sub_norms=sub_norms, exclude=("*layers.1.mlp.up_proj",)), steps=4)
    model.set_attn_implementation("eager")
    save(model, tmp_path, form)
    ids = examples().arrays["input_ids"][:2]
    with torch.no_grad():
        want = model(input_ids=ids).logits
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert type(theirs).__name__ == ("BitNetForCausalLM" if sub_norms == "block" else "LlamaForCausalLM")
    kinds = {type(m).__name__ for n, m in theirs.named_modules() if n.endswith("q_proj")}
    assert kinds == {"BitLinear" if form == "bitlinear" else "AutoBitLinear"}
    assert type(theirs.model.layers[1].mlp.up_proj) is nn.Linear
    with torch.no_grad():
        found = theirs(input_ids=ids).logits.float()
    if form == "online":
        assert torch.equal(found, want)
    else:
        assert (found - want).abs().max() <= CLOSE * want.abs().max()
    ours = load_module(str(tmp_path))
    loaded = dict(materialize(ours.module).named_modules())
    for name, layer in bit_linears(model).items():
        inner: Any = loaded.get(f"{name}.linear") or loaded[name]
        torch.testing.assert_close(inner.weight, ternary_weights(layer.weight).detach(), rtol=1e-6, atol=0)
        assert inner.activation_block_size == 0


def test_biases_survive_every_form(tmp_path: Path) -> None:
    import transformers

    model: Any = convert(build("Llama", {**SIZES, "attention_bias": True}), BitNet()).eval()
    for layer in bit_linears(model).values():
        if layer.bias is not None:
            nn.init.normal_(layer.bias)
    ids = examples().arrays["input_ids"][:1]
    with torch.no_grad():
        want = model(input_ids=ids).logits
    for form in FORMS:
        save(model, tmp_path, form)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        with torch.no_grad():
            assert (theirs(input_ids=ids).logits - want).abs().max() <= CLOSE * want.abs().max()


def test_a_stopped_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    ternary = BitNet(ramp=6, sub_norms="layer")
    training = Training(
        steps=10, batch_size=8, learning_rate=3e-3, schedule="two-stage", weight_decay=0.1, warmup=2, checkpoint_every=5
    )

    def run() -> Run:
        model = convert(build("Llama", SIZES), ternary)
        return Run(
            model, LANGUAGE, examples(), training, constraint=BitNetTraining(model, ternary), evaluation=examples(4)
        )

    whole, first, second, checkpoint = run(), run(), run(), Checkpoint(tmp_path / "state", {})
    whole.go()

    def stop(what: str, share: float) -> None:
        if first.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        first.go(checkpoint=checkpoint, progress=stop)
    second.resume(checkpoint)
    second.go()
    assert second.history == whole.history and 0.2 < whole.history.evaluations[-1]["zeros"] < 0.5
    one, two = whole.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_warm_start_loses_less_at_first() -> None:
    """Trained in float, the model goes on as ternary: with a ramp the first losses are the float model's."""
    base = build("Llama", SIZES)
    Run(base, LANGUAGE, examples(), Training(steps=60, batch_size=8, learning_rate=5e-3)).go()
    state, losses = base.state_dict(), {}
    for ramp in (0, 20):
        model = build("Llama", SIZES)
        model.load_state_dict(state)
        ternary = BitNet(ramp=ramp)
        model = convert(model, ternary)
        run = Run(
            model, LANGUAGE, examples(), Training(steps=25, batch_size=8, learning_rate=2e-3),
            constraint=BitNetTraining(model, ternary),
        )  # fmt: skip
        losses[ramp] = run.go().losses
    assert losses[20][0] < 0.5 * losses[0][0]


def test_the_callback_in_a_trainer(tmp_path: Path) -> None:
    """Ramp and two-stage schedule in a transformers Trainer: resumed from its checkpoint, the same weights."""
    import transformers

    training = Training(steps=8, learning_rate=3e-3, schedule="two-stage", weight_decay=0.1)
    rows = [{"input_ids": row, "labels": row} for row in examples(16).arrays["input_ids"]]
    seen: list[tuple[float, float]] = []

    class Watch(transformers.TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            seen.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["weight_decay"]))

    def fit(path: Path, resume: str | None = None) -> Any:
        model = convert(build("Llama", SIZES), BitNet(ramp=5))
        arguments = transformers.TrainingArguments(
            output_dir=str(path), max_steps=8, per_device_train_batch_size=4, save_steps=4, report_to=[], use_cpu=True,
            weight_decay=0.1, seed=1, disable_tqdm=True, logging_strategy="no",
        )  # fmt: skip
        callback = BitNetCallback(BitNet(ramp=5), training)
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=rows, callbacks=[callback, Watch()])
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = fit(tmp_path / "a")
    assert [rate for rate, _ in seen] == pytest.approx([training.rate_at(i) for i in range(8)])
    assert [decay for _, decay in seen] == [0.1] * 4 + [0.0] * 4
    assert all(layer.amount == 1 for layer in bit_linears(whole).values())
    again = fit(tmp_path / "b", str(tmp_path / "a" / "checkpoint-4"))
    one, two = whole.state_dict(), again.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(("given", "ramp", "message"), [
    (Training(steps=4), 0, r"training\.steps: 4, and the Trainer takes 2; give both the same number \(max_steps\)"),
    (None, 3, "ramp: 3 is more than the Trainer's 2 steps; a model that ends inside the ramp was never ternary"),
])  # fmt: skip
def test_the_callback_refuses_other_steps(given: Training | None, ramp: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        in_trainer(tmp_path, BitNetCallback(BitNet(ramp=ramp), given), max_steps=2)


def test_weight_decay_is_the_trainings_and_spares_norms(tmp_path: Path) -> None:
    """Whatever the Trainer's own is, 0 as it comes."""
    import transformers

    seen: list[list[tuple[float, bool]]] = []

    class Watch(transformers.TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
            groups = optimizer.param_groups
            seen.append([(g["weight_decay"], all(p.ndim > 1 for p in g["params"])) for g in groups])

    training = Training(steps=4, schedule="two-stage", weight_decay=0.1)
    in_trainer(tmp_path, BitNetCallback(BitNet(), training), Watch(), max_steps=4)
    assert seen == [[(0.1, True), (0.0, False)]] * 2 + [[(0.0, True), (0.0, False)]] * 2


def in_trainer(path: Path, *callbacks: Any, **arguments: Any) -> None:
    import transformers

    model = convert(build("Llama", SIZES), BitNet())
    rows = [{"input_ids": row, "labels": row} for row in examples(16).arrays["input_ids"]]
    settings = transformers.TrainingArguments(
        output_dir=str(path), per_device_train_batch_size=4, save_strategy="no", report_to=[], use_cpu=True, disable_tqdm=True,
        logging_strategy="no", **arguments,
    )  # fmt: skip
    transformers.Trainer(model=model, args=settings, train_dataset=rows, callbacks=[*callbacks]).train()


def test_learning_rates_never_turn_around() -> None:
    for schedule in ("linear", "cosine", "two-stage"):
        training = Training(steps=10, schedule=schedule)
        assert [training.rate_at(step) for step in (10, 15, 1000)] == [0.0] * 3


def test_masters_are_float32() -> None:
    with pytest.raises(UnsupportedError, match=r"q_proj: weights are bfloat16; ternary training moves float32 masters"):
        convert(build("Llama", SIZES).to(torch.bfloat16), BitNet())


def test_trained_exported_verified_and_the_same_tokens(tmp_path: Path) -> None:
    """A BitNet trained for some steps: recipe ternary, every layer 2 bits, greedy tokens as PyTorch's."""
    from edgekit.bundle import Bundle
    from edgekit.exporter import export
    from edgekit.parity import verify
    from edgekit.runtime.decoder import Decoder

    model = trained(BitNet(sub_norms="block"), steps=40)
    (tmp_path / "model").mkdir()
    save(model, tmp_path / "model", "bitlinear")
    bundle = export(str(tmp_path / "model"), "ternary", tmp_path / "bundle", abis=["linux-x86_64"])
    inner = [layer for layer in bundle.manifest.layers if "layers" in layer.name]
    assert len(inner) == 14 and {layer.format for layer in inner} == {"t2"}
    report = verify(bundle)
    assert report.parity.passed, "\n".join(report.lines())
    prompt = examples().arrays["input_ids"][:1, :6]
    with torch.no_grad():
        want = model.generate(input_ids=prompt, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    decoder, found = Decoder(Bundle.open(tmp_path / "bundle")), prompt[0].tolist()
    logits = decoder.run(prompt.numpy())[0, -1]
    for _ in range(10):  # as far as it was trained: later its choices are near ties
        found.append(int(logits.argmax()))
        logits = decoder.step(found[-1])
    assert found == want[0].tolist()
    assert found[6:12] == [(found[5] + 3 * i) % 97 for i in range(1, 7)]  # and it has learned the rule


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama that reads bytes, and a text."""
    from tests.support.tiny_bundle import write_tokenizer

    path = tmp_path_factory.mktemp("decoder")
    build("Llama", {**SIZES, "vocab_size": 259}).save_pretrained(path / "model")
    write_tokenizer(path / "model")
    (path / "text.txt").write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return path


def test_edgekit_compress_makes_it_ternary_and_resumes(decoder: Path, tmp_path: Path) -> None:
    from edgekit.compression import compress

    config = decoder / "bitnet.yaml"
    config.write_text(
        "version: 1\nmethod: bitnet\nbitnet: {ramp: 10, form: bitlinear}\ndata: {train: [text.txt], length: 32}\n"
        "training: {steps: 30, batch_size: 8, learning_rate: 0.005, schedule: two-stage, weight_decay: 0.1, checkpoint_every: 7}\n"
    )
    source = str(decoder / "model")
    whole = compress(source, config, tmp_path / "whole")

    def stop(what: str, share: float) -> None:
        if what.startswith("train: ") and share >= 0.5:
            raise MemoryError

    with pytest.raises(MemoryError):
        compress(source, config, tmp_path / "parts", progress=stop)
    parts = compress(source, config, tmp_path / "parts", resume=True)
    assert parts.history == whole.history and len(whole.history.losses) == 30
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    inner = [layer for layer in whole.after.layers if "proj" in layer.name]
    assert len(inner) == 14 and all(0.2 < layer.zeros < 0.5 and layer.entropy <= 1.585 for layer in inner)
    assert whole.settings["bitnet"] == {"ramp": 10, "sub_norms": "none", "exclude": (), "form": "bitlinear"}
    loaded = load_module(whole.exportable)
    assert {p.name for p in loaded.assets} >= {"tokenizer.json"}
    assert sum(hasattr(m, "activation_block_size") for m in loaded.module.modules()) == 14
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM is ternary already; edgekit export takes it as it is"):
        compress(whole.exportable, config, tmp_path / "again")


def convertible_model(decoder: Path, **settings: int) -> str:
    """As ``decoder``'s model, with its tokenizer, but for some settings."""
    path = decoder / "-".join(f"{key}{value}" for key, value in settings.items())
    build("Llama", {**SIZES, **settings}).save_pretrained(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_bytes((decoder / "model" / name).read_bytes())
    return str(path)


def test_what_compress_refuses(decoder: Path, tmp_path: Path) -> None:
    from edgekit.compression import compress
    from edgekit.errors import RecipeError

    start = "version: 1\nmethod: bitnet\n"
    for text, message in (
        ("bitnet: {ramp: 9}\ntraining: {steps: 5}\ndata: {train: [text.txt]}\n",
         r"bitnet\.ramp: 9 is more than training\.steps, 5; a model that ends inside the ramp was never ternary"),
        ("training: {steps: 0}\n", "steps: 0, but bitnet works by training"),
        ("bitnet: {norms: block}\n", r"unknown key 'norms'"),
    ):  # fmt: skip
        (decoder / "bad.yaml").write_text(start + text)
        with pytest.raises(RecipeError, match=message):
            compress(str(decoder / "model"), decoder / "bad.yaml", tmp_path / "out")
    odd = convertible_model(decoder, intermediate_size=98, vocab_size=256)
    (decoder / "odd.yaml").write_text(
        start + "bitnet: {form: bitlinear}\ndata: {train: [text.txt], length: 32}\ntraining: {steps: 9999}\n"
    )
    with pytest.raises(UnsupportedError, match="gate_proj: 98 rows do not fill bytes of four"):  # before the training
        compress(odd, decoder / "odd.yaml", tmp_path / "out")
    small = convertible_model(decoder, vocab_size=50)
    with pytest.raises(SourceError, match=r"compress\.data\.train: token ids \d+ to \d+, LlamaForCausalLM has 0 to 49"):
        compress(small, decoder / "odd.yaml", tmp_path / "out")
    with pytest.raises(UsageError, match="seed 4294967296: none is negative, the seed is below 4294967296"):
        Training(seed=2**32)
    (decoder / "points.yaml").write_text(
        start + 'data: {train: ["tests.unit.test_compress:points"]}\ntraining: {steps: 5}\n'
    )
    with pytest.raises(
        UnsupportedError, match="classifier: bitnet saves Hugging Face causal language models, this is factory, generic"
    ):
        compress("tests.unit.test_compress:classifier", decoder / "points.yaml", tmp_path / "out")
    assert not list(tmp_path.iterdir())
