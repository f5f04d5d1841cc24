"""edgekit compress: what it makes, that an interrupted run ends as an uninterrupted one, and what it refuses."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from edgekit.cli.verbs import main
from edgekit.compression import compress, rate_of
from edgekit.compression.material import filled, read_tokenizer
from edgekit.compression.settings import Compression, Data
from edgekit.errors import CheckFailed, EdgekitError, RecipeError, SourceError, UnsupportedError, UsageError
from edgekit.frontend.samples import DATA, general_texts
from edgekit.methods.example_files import arrays, named, split, tokens
from edgekit.methods.examples import Examples
from edgekit.methods.layerwise import Calibration
from edgekit.methods.training import Training
from edgekit.recipe import Recipe

CLASSIFIER = "tests.unit.test_compress:classifier"
POINTS = "tests.unit.test_compress:points"


def classifier() -> tuple[nn.Module, tuple[torch.Tensor]]:
    """Two numbers -> in which quadrant they are; dropout makes the run depend on random numbers."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    return net, (torch.zeros(2, 2),)


def points() -> tuple[np.ndarray, np.ndarray]:
    values = np.random.default_rng(0).uniform(-1, 1, (600, 2)).astype(np.float32)
    return values, (2 * (values[:, 0] > 0) + (values[:, 1] > 0)).astype(np.int64)


def settings(tmp_path: Path, text: str = "", **training: object) -> Path:
    """A config for the classifier."""
    path = tmp_path / "compress.yaml"
    values = {"steps": 60, "learning_rate": 0.01, "checkpoint_every": 7, **training}
    listed = "".join(f"  {key}: {value}\n" for key, value in values.items())
    path.write_text(f'version: 1\ndata:\n  train: ["{POINTS}"]\ntraining:\n{listed}{text}', encoding="utf-8")
    return path


def stop_at(step: int) -> Callable[[str, float], None]:
    """A progress function that presses Ctrl-C once."""
    calls = iter(range(10_000))

    def progress(what: str, share: float) -> None:
        if what.startswith("train: ") and next(calls) == step:
            signal.raise_signal(signal.SIGINT)

    return progress


METHODS = {
    "backslash": "method: backslash\nrate: {steps: 40, strength: 3}\n",
    "prune": "method: prune\nprune: {sparsity: 0.7, steps: 40, every: 5}\n",
    "none": "method: none\n",
}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, method: str) -> None:
    config = settings(tmp_path, METHODS[method], schedule="cosine", evaluate_every=20, warmup=5)
    whole = compress(CLASSIFIER, config, tmp_path / "whole")
    for step in (23, 10, 0):
        with pytest.raises(KeyboardInterrupt):
            compress(CLASSIFIER, config, tmp_path / "parts", resume=step < 23, progress=stop_at(step))
        assert not (tmp_path / "parts").exists()
    assert len(list((tmp_path / ".parts.checkpoint").glob("step-*"))) == 1
    parts = compress(CLASSIFIER, config, tmp_path / "parts", resume=True)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert whole.history == parts.history and len(whole.history.losses) == 60
    assert sorted(p.name for p in tmp_path.iterdir()) == ["compress.yaml", "parts", "whole"]
    assert whole.history.evaluations[-1]["accuracy"] > 0.85


def test_a_checkpoint_survives_a_dead_process_and_belongs_to_its_settings(tmp_path: Path) -> None:
    config, out = settings(tmp_path, METHODS["backslash"]), tmp_path / "out"

    def dies(what: str, share: float) -> None:
        if share > 0.5:
            raise MemoryError

    with pytest.raises(MemoryError):
        compress(CLASSIFIER, config, out, progress=dies)
    with pytest.raises(UsageError, match="a run was interrupted here; --resume goes on with it, --force begins anew"):
        compress(CLASSIFIER, config, out)
    other = settings(tmp_path, METHODS["backslash"], batch_size=16)
    with pytest.raises(UsageError, match=r"training\.batch_size is 16 now and was 32; resume with the settings"):
        compress(CLASSIFIER, other, out, resume=True)
    config = settings(tmp_path, METHODS["backslash"])
    result = compress(CLASSIFIER, config, out, resume=True)
    assert result.history == compress(CLASSIFIER, config, tmp_path / "whole").history
    (tmp_path / ".out.checkpoint").write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(SourceError, match=r"\.out\.checkpoint: not a checkpoint, or damaged"):
        compress(CLASSIFIER, config, out, resume=True, force=True)
    compress(CLASSIFIER, config, out, force=True)
    with pytest.raises(UsageError, match="no checkpoint to resume from"):
        compress(CLASSIFIER, config, out, resume=True, force=True)


def test_a_compressed_factory_is_exported_with_its_zeros(tmp_path: Path) -> None:
    from edgekit.exporter import export

    result = compress(CLASSIFIER, settings(tmp_path, METHODS["backslash"]), tmp_path / "small")
    assert result.exportable == f"{CLASSIFIER}@{tmp_path / 'small'}"
    document = json.loads((tmp_path / "small" / "compress.json").read_text())
    assert document["method"] == "backslash" and document["settings"]["rate"]["strength"] == 3
    assert document["rate"]["total"]["zeros"] > 0.3 > document["rate_before"]["zeros"]
    assert (
        document["losses"][-1][0] == 60 and document["evaluations"][-1]["zeros"] == document["rate"]["total"]["zeros"]
    )
    assert rate_of(result.exportable, 2.0**-8).total == result.after.total
    bundle = export(result.exportable, "int8", tmp_path / "bundle", abis=[])
    weights = load_file(tmp_path / "small" / "model.safetensors")
    codes = bundle.tensor(next(layer.tensor for layer in bundle.manifest.layers if layer.name == "3"))
    # whole units may have been removed with their zeros
    assert 0 < (codes != 128).sum() <= int((weights["3.weight"] != 0).sum()) < 32 * 64 / 2
    with pytest.raises(SourceError, match=r"model.safetensors: does not hold the weights of Linear"):
        rate_of(f"tests.unit.test_compress:smaller@{tmp_path / 'small'}", 0.01)


def test_a_failed_write_leaves_the_earlier_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, out = settings(tmp_path, "method: none\n", steps=2), tmp_path / "out"
    compress(CLASSIFIER, config, out)
    before = (out / "model.safetensors").read_bytes()
    plain = Path.rename

    def full(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return plain(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(CheckFailed, match=r"out: cannot be written \(No space left on device\); make room"):
        compress(CLASSIFIER, config, out, method="prune", force=True)
    monkeypatch.undo()
    assert (out / "model.safetensors").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["compress.yaml", "out"]
    out.rename(tmp_path / ".out.old")  # a process that died between the two renames
    compress(CLASSIFIER, config, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["compress.yaml", "out"]


def test_the_rate_recipe_stores_pruned_layers_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.exporter import export
    from edgekit.parity import verify
    from edgekit.passes import choose_formats

    monkeypatch.setattr(choose_formats, "CACHE_BYTES", 0)  # as for a model that fits no cache
    config = settings(tmp_path, "method: prune\nprune: {sparsity: 0.7}\n", steps=40)
    result = compress(CLASSIFIER, config, tmp_path / "small")
    bundle = export(result.exportable, "rate", tmp_path / "bundle", abis=[])
    formats = {layer.name: layer for layer in bundle.manifest.layers}
    assert formats["3"].format == "sparse-int8" and "zeros: faster than int8" in formats["3"].reason
    assert verify(tmp_path / "bundle").verdict == "UNPROVEN"  # every limit is kept, on example inputs


def smaller() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return nn.Linear(2, 4), (torch.zeros(2, 2),)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny tied Llama with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("models") / "tiny"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(path)
    return path


def test_a_decoder_learns_from_texts(tmp_path: Path, decoder: Path) -> None:
    from edgekit.frontend.loading import load_module

    texts = tmp_path / "texts" / "deeper"
    texts.mkdir(parents=True)
    for name in ("a.txt", "b.md"):
        (texts / name).write_text("the quick brown fox jumps over the lazy dog. " * 60)
    (texts / "c.bin").write_bytes(b"\xff\xfe")
    config = tmp_path / "c.yaml"
    config.write_text(
        "version: 1\nmethod: backslash\ndata: {train: [texts], length: 32, held_out: 0.2}\n"
        "training: {steps: 60, batch_size: 8, learning_rate: 0.01, clip: 1.0}\nrate: {steps: 40, strength: 6, exclude: ['*embed*']}\n"
    )
    result = compress(str(decoder), config, tmp_path / "out")
    first, last = result.history.evaluations
    assert last["loss"] < 0.7 * first["loss"] and last["accuracy"] > 0.15
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "compress.json",
    }  # fmt: skip
    again = load_module(str(tmp_path / "out"))
    assert again.task == "text-generation" and len(again.assets) >= 2
    zeros = rate_of(str(tmp_path / "out"), 0.01).layers
    assert zeros[0].zeros == 0 and sum(layer.zeros for layer in zeros[1:]) > 0


def test_pruning_alone_needs_no_data(tmp_path: Path, decoder: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("version: 1\nmethod: prune\ntraining: {steps: 0}\nprune: {sparsity: 0.6, scope: layer}\n")
    result = compress(str(decoder), config, tmp_path / "sixty")
    assert all(layer.zeros == pytest.approx(0.6, abs=0.002) for layer in result.after.layers)
    result = compress(str(decoder), config, tmp_path / "half", method="2:4")
    assert all(layer.zeros == 0.5 for layer in result.after.layers)
    assert result.settings["prune"]["pattern"] == "2:4" and result.history.losses == []


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(a) for a in arguments])
        out, err = capsys.readouterr()
        return int(stopped.value.code or 0), out, err

    code, out, _ = run("compress", CLASSIFIER, "--step", "0.01")
    assert code == 0 and out.splitlines()[0].startswith("weight") and "total" in out
    code, out, _ = run("compress", CLASSIFIER, "--json")
    assert code == 0 and json.loads(out)["total"]["count"] == 64 * 2 + 64 * 32 + 32 * 4
    config = settings(tmp_path, "method: none\n", steps=20)
    code, out, err = run("compress", CLASSIFIER, "-c", config, "-o", tmp_path / "out")
    assert code == 0 and "next: edgekit export tests.unit.test_compress:classifier@" in out and "train: step" in err
    assert len([line for line in err.splitlines() if "train: step" in line]) <= 21
    code, _, err = run("compress", CLASSIFIER, "-c", config, "-o", tmp_path / "out")
    assert code == 2 and "a compressed model is there already; --force replaces it" in err
    assert run("compress", CLASSIFIER, "-c", config, "-o", tmp_path)[2].endswith(
        "is there and no model that edgekit compress made; give -o another directory\n"
    )
    for arguments in (["-o", "x"], ["--method", "prune"], ["-c", config], ["-c", config, "-o", "x", "--step", "1"]):
        assert run("compress", CLASSIFIER, *arguments)[0] == 2
    assert "--method prune: needs --config FILE" in run("compress", CLASSIFIER, "--method", "prune", "-o", "x")[2]
    both = ["--samples", tmp_path, "-c", config, "-o", "x"]
    assert "--samples: the config has its own data" in run("compress", CLASSIFIER, *both)[2]


def test_gptq_needs_no_configuration(tmp_path: Path, decoder: Path) -> None:
    gptq = Compression.calibrated("gptq", None)
    assert gptq.calibration.examples == 256 and gptq.gptq.group_size == 32 and gptq.gptq.act_order
    result = compress(str(decoder), replace(gptq, calibration=Calibration(examples=16)), tmp_path / "small")
    assert result.to_json()["settings"]["data"]["train"][0].endswith("calibration.txt")
    rules = Recipe.load(result.recipe).rules
    assert any((rule.format, rule.block_size) == ("int4-fp16", 32) for rule in rules)

    texts = tmp_path / "texts"
    texts.mkdir()
    with pytest.raises(SourceError, match=r"no file in it ends in \.txt or \.md"):
        Compression.calibrated("gptq", texts)
    with pytest.raises(SourceError, match="no such file or directory"):
        Compression.calibrated("gptq", tmp_path / "absent.txt")
    for name, text, count in (("empty.txt", "", 0), ("short.txt", "a few letters", 13)):
        (texts / name).write_text(text)
        with pytest.raises(SourceError, match=f"{count} tokens in all, fewer than one example of 64; give more text"):
            compress(str(decoder), Compression.calibrated("gptq", texts / name), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_short_text_is_filled_up_with_general_ones(decoder: Path) -> None:
    """Each kind gives its share, the user's windows come first, the same ones are drawn again."""
    tokenizer = read_tokenizer(decoder / "tokenizer.json")
    mine = Examples({"input_ids": torch.arange(12).view(3, 4)})
    texts = ["one " * 400, "two " * 400, "three " * 400]
    windows = filled(mine, 33, texts, tokenizer.encode).arrays["input_ids"]
    assert windows.shape == (33, 4) and torch.equal(windows[:3], mine.arrays["input_ids"])
    assert torch.equal(windows, filled(mine, 33, texts, tokenizer.encode).arrays["input_ids"])
    for kind, text in enumerate(texts):
        ids = set(tokenizer.encode(text, add_special_tokens=False).ids)
        assert set(windows[3 + 10 * kind : 13 + 10 * kind].flatten().tolist()) <= ids
    assert torch.equal(filled(mine, 3, texts, tokenizer.encode).arrays["input_ids"], mine.arrays["input_ids"])


def test_general_texts_are_of_several_kinds_and_leave_out_what_is_there() -> None:
    shipped = str(DATA / "calibration.txt")
    dialogue, documentation, code = general_texts(besides=shipped)
    assert "ANTONY." in dialogue and "statement" in documentation and "def " in code
    assert len(dialogue) > 100_000 and min(len(documentation), len(code)) > 200_000
    assert general_texts(besides="mine.txt") == [Path(shipped).read_text("utf-8"), dialogue, documentation, code]


def test_a_text_given_twice_counts_once(tmp_path: Path) -> None:
    for name, text in (("a.txt", "abcd"), ("b.txt", "efgh"), ("c.txt", "abcd")):
        (tmp_path / name).write_text(text)
    assert tokens([tmp_path], lambda text: list(map(ord, text)), 4).arrays["input_ids"].shape == (2, 4)


def huge() -> tuple[np.ndarray, np.ndarray]:
    return np.full((9, 2), 3e38, np.float32), np.zeros(9, np.int64)


class Stopping(nn.Sequential):
    """Presses Ctrl-C while it trains."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + self.training
        if self.calls == 12:
            signal.raise_signal(signal.SIGINT)
        return super().forward(x)  # type: ignore[no-any-return, no-untyped-call]


def stopping() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return Stopping(nn.Linear(2, 4)), (torch.zeros(2, 2),)


def test_ctrl_c_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(tmp_path, "method: none\n", checkpoint_every=100)
    spec, out = f"{__name__}:stopping", tmp_path / "out"
    before = signal.getsignal(signal.SIGINT)  # ignored in what a shell runs in the background
    with pytest.raises(SystemExit) as stopped:
        main(["compress", spec, "-c", str(config), "-o", str(out)])
    err = capsys.readouterr().err
    assert (
        stopped.value.code == 130 and "edgekit: a checkpoint is kept; the same command with --resume goes on\n" in err
    )
    assert torch.load(tmp_path / ".out.checkpoint" / "step-12" / "run", weights_only=True)["state"]["step"] == 12
    assert signal.getsignal(signal.SIGINT) is before


def test_a_run_that_diverges_says_so_and_writes_nothing(tmp_path: Path) -> None:
    config = Compression(1, Data((f"{__name__}:huge",)), "none", Training(steps=4))
    with pytest.raises(CheckFailed, match=r"step 1: the loss is nan; lower learning_rate \(0.001\) or set clip"):
        compress(CLASSIFIER, config, tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version: 2\n", "compress.version: 2 is not 1"),
        ("version: 1\nmethd: prune\n", "compress: unknown key 'methd'; did you mean 'method'?"),
        ("version: 1\nmethod: prun\n", "compress.method: 'prun' is not one of .*; did you mean 'prune'?"),
        ("version: 1\n", "compress.data: missing; training needs examples"),
        ("version: 1\ntraining: {steps: 0}\n", "compress.training.steps: 0, but backslash works by training"),
        ("version: 1\ndata: {train: []}\n", "compress.data.train: empty"),
        ("version: 1\ndata: {train: [a], held_out: 1.0}\n", "compress.data.held_out: 1.0 is not a share"),
        ("version: 1\ndata: {train: [a], length: 1}\n", "compress.data: length 1, most 0"),
        ("version: 1\ndata: {train: [a]}\nrate: {steps: 2000}\n", "compress.rate.steps: 2000 is more than training.steps, 1000"),
        ("version: 1\ndata: {train: [a]}\nrate: {strength: 1}\n", "compress.rate: missing key 'steps'"),
        ("version: 1\ndata: {train: [a]}\nmethod: prune\nprune: {steps: 2000}\n", "compress.prune.steps: 2000 is more than"),
        ("version: 1\ndata: {train: [a]}\nrate: {steps: 2, variant: l0}\n", "variant 'l0'"),
        ("version: 1\ntraining: {steps: -1}\n", "steps -1, batch_size 32"),
        ("version: 1\ntraining: {schedule: cosin}\n", "schedule: 'cosin' is not one of constant, linear, cosine"),
        ("version: 1\ntraining: {learning_rate: .nan}\n", "learning_rate nan"),
        ("version: 1\ntraining: {learning_rate: 1e30}\n", r"learning_rate 1e\+30, .* at most 1e\+06"),
        ("version: 1\ntraining: {learning_rate: fast}\n", "compress.training.learning_rate: expected float, got str"),
        ("version: 1\nversion: 1\n", "not valid YAML: 'version' stands twice"),
    ],
)  # fmt: skip
def test_configs_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(EdgekitError, match=message) as found:
        Compression.load(path)
    assert isinstance(found.value, RecipeError | UsageError) and str(path) in str(found.value)


def wrong_shape() -> dict[str, Any]:
    return {"x": np.zeros((9, 3), np.float32), "labels": np.zeros(9, np.int64)}


def wrong_class() -> dict[str, Any]:
    return {"x": np.zeros((9, 2), np.float32), "labels": np.full(9, 4)}


def unlabelled() -> dict[str, Any]:
    return {"x": np.zeros((9, 2), np.float32)}


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("missing.npz", r"missing.npz: not a readable .npz"),
        ("missing.txt", r"missing.txt: texts are for language models and encoders; Sequential takes input"),
        (f"{__name__}:wrong_shape", r"Sequential does not run on the data \(input float32\[3\]"),
        (f"{__name__}:wrong_class", "labels: 4 is no class of Sequential, which has 4"),
        (f"{__name__}:unlabelled", "compress.data.train: has no labels"),
        (f"{__name__}:nothing_there", "has no 'nothing_there'"),
    ],
)
def test_data_that_do_not_fit_the_model(tmp_path: Path, train: str, message: str) -> None:
    config = Compression(1, Data((train,)), training=Training(steps=4))
    with pytest.raises(EdgekitError, match=message) as found:
        compress(CLASSIFIER, config, tmp_path / "out")
    assert not isinstance(found.value, UnsupportedError) and not list(tmp_path.iterdir())


def test_models_that_cannot_be_trained(tmp_path: Path, decoder: Path) -> None:
    long = Compression(1, Data(("x.txt",), length=65), training=Training(steps=4))
    with pytest.raises(SourceError, match=r"compress.data.length: 65 tokens, LlamaForCausalLM takes at most 64"):
        compress(str(decoder), long, tmp_path / "out")
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(EdgekitError):
        compress(str(tmp_path / "m.onnx"), long, tmp_path / "out")
    (tmp_path / "bare").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "bare" / name).write_bytes((decoder / name).read_bytes())
    with pytest.raises(SourceError, match=r"bare: has no tokenizer.json to read x.txt with"):
        compress(str(tmp_path / "bare"), Compression(1, Data(("x.txt",), length=8)), tmp_path / "out")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT as a sentence-transformers directory."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("models") / "encoder"
    words = ["[PAD]", "[UNK]", *sorted({"!", "?", ".", *re.findall(r"\w+", SENTENCES)})]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    config._attn_implementation = "eager"
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(path)
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    listed = [{"type": f"sentence_transformers.models.{kind}", "path": where} for where, kind in kinds.items()]
    (path / "modules.json").write_text(json.dumps(listed))
    return path


SENTENCES = "The quick brown fox. One two three four five! Six seven the lazy dog? No.\n\nThe fox jumps over\n" * 8


def test_an_encoder_learns_to_keep_its_embeddings_and_its_pooling(tmp_path: Path, encoder: Path) -> None:
    from edgekit.frontend.loading import load_module

    (tmp_path / "a.txt").write_text(SENTENCES)
    config = Compression(
        1, Data((str(tmp_path / "a.txt"),), length=16), "2:4", Training(steps=30, learning_rate=3e-3, batch_size=8)
    )  # fmt: skip
    result = compress(str(encoder), config, tmp_path / "half")
    first, *_, last = result.history.evaluations
    assert first["cosine"] < last["cosine"] <= 1 and first["zeros"] == last["zeros"] == pytest.approx(0.5, abs=0.01)
    found = load_module(str(tmp_path / "half"))
    assert found.task == "feature-extraction" and found.module.pooling == "mean" and found.module.normalize


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1, 2], "gives a list; expected arrays by name"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, "holds a, b; the model's inputs are x, and classes are called labels"),
        ({"x": np.zeros((3, 2)), "labels": np.zeros(2, int)}, "all need the same number, at least 1"),
        ({"x": np.zeros((0, 2))}, "all need the same number, at least 1"),
        ({"x": np.zeros((3, 2)), "labels": np.zeros(3)}, "labels are float32"),
        ({"x": np.zeros((3, 2)), "labels": np.zeros((3, 2), int)}, r"labels are int64 \[3, 2\]"),
        ({"x": np.zeros((3, 8, 8), np.uint8)}, "store pixels as float32"),
        ({"x": np.array(["a"])}, "is no array of numbers"),
    ],
)
def test_arrays_that_are_no_examples(given: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        named(given, ["x"], "here")


def test_arrays_and_texts(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", pixels=np.ones((4, 2)), labels=np.arange(4, dtype=np.int32))
    found = arrays(tmp_path / "a.npz", ["images"])
    assert found.arrays["images"].dtype == torch.float32 and found.arrays["labels"].tolist() == [0, 1, 2, 3]
    np.savez(tmp_path / "b.npz", pixels=np.array([{}], object))
    with pytest.raises(SourceError, match=r"not a readable \.npz of plain arrays"):
        arrays(tmp_path / "b.npz", ["images"])
    (tmp_path / "t.txt").write_text("abcdefghij")
    pieces = tokens([tmp_path / "t.txt"], lambda text: [ord(c) for c in text], 4)
    assert pieces.arrays["input_ids"].tolist() == [[97, 98, 99, 100], [101, 102, 103, 104]]
    with pytest.raises(SourceError, match="10 tokens in all, fewer than one example of 11"):
        tokens([tmp_path / "t.txt"], lambda text: [0] * len(text), 11)
    (tmp_path / "latin.txt").write_bytes("Stéfan".encode("latin-1"))
    with pytest.raises(SourceError, match=r"latin\.txt: not a readable UTF-8 text"):
        tokens([tmp_path / "latin.txt"], lambda text: [0], 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"no file in it ends in \.txt or \.md"):
        tokens([tmp_path / "empty"], lambda text: [0], 1)


def test_held_out_examples_are_not_trained_with() -> None:
    examples = Examples({"x": torch.arange(50)})
    for shuffle in (False, True):
        train, held = split(examples, 0.2, shuffle)
        assert len(held) == 10 and sorted([*train.arrays["x"].tolist(), *held.arrays["x"].tolist()]) == list(range(50))
        assert (held.arrays["x"].tolist() == list(range(40, 50))) is not shuffle
    with pytest.raises(SourceError, match="1 examples, too few"):
        split(Examples({"x": torch.zeros(1)}), 0.1, False)


@pytest.mark.parametrize(
    ("schedule", "rates"), [("constant", [0.5, 1, 1, 1, 1, 1]), ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25])]
)
def test_learning_rates(schedule: str, rates: list[float]) -> None:
    training = Training(steps=6, learning_rate=1.0, warmup=2, schedule=schedule)
    assert [training.rate_at(step) for step in range(6)] == pytest.approx(rates)


def test_every_epoch_sees_every_example_once() -> None:
    from edgekit.methods.examples import CLASSES
    from edgekit.methods.training import Run

    net = nn.Linear(1, 2)
    run = Run(net, CLASSES, Examples({"x": torch.zeros(10, 1)}), Training(batch_size=3, seed=4))
    seen = []
    for step in range(9):
        run.step = step
        seen.append(run._rows().tolist())
    epochs = [[row for rows in seen[i : i + 3] for row in rows] for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 9 for epoch in epochs) and seen[0] != seen[3]
