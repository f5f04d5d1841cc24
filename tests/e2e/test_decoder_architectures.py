"""Every architecture edgekit says it exports: logits of the exported graph against transformers, in every way a graph is used."""

from __future__ import annotations

import importlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
import transformers
from torch import nn

from edgekit.errors import CheckFailed, UnsupportedError
from edgekit.frontend.decoder import build
from edgekit.golden import text_vector
from edgekit.passes import pipeline
from edgekit.recipe import Recipe
from tests.support.tiny_decoders import DECODERS, REFUSED
from tests.support.tiny_decoders import build as tiny

TOLERANCE = 1e-4  # largest logits are about 5 to 10
LENGTH = 20


class Graph:
    """An exported fp32 decoder in ONNX Runtime, fed without a shared cache."""

    def __init__(self, model: nn.Module, path: Path) -> None:
        self.ir = build(model)
        for step in pipeline(Recipe.load("fp32")):
            self.ir = step(self.ir).model
        ir.save(self.ir, path / "model.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self.session = ort.InferenceSession(path / "model.onnx", options)
        self.caches = [i for i in self.session.get_inputs() if i.name.startswith("past_")]

    def run(
        self, ids: np.ndarray, mask: np.ndarray, past: list[np.ndarray] | None = None, keep: int = 0
    ) -> list[np.ndarray]:
        feed: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "logits_to_keep": np.array([keep], np.int64)}
        for index, cache in enumerate(self.caches):
            empty = [0 if size == "past_sequence_length" else size for size in cache.shape[1:]]
            feed[cache.name] = np.zeros((len(ids), *empty), np.float32) if past is None else past[index]
        return list(self.session.run(None, feed))


def reference(model: nn.Module, ids: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()  # type: ignore[no-any-return]


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=TOLERANCE * max(1.0, float(np.abs(expected).max())) / 5, rtol=0)


def ones(rows: int, length: int) -> np.ndarray:
    return np.ones((rows, length), np.int64)


OLD = transformers.__version__.startswith("4.")
NEW_INTERFACE = {
    "nemotron",
    "stablelm",
    "opt",
    "qwen3-moe",
    "mixtral",
    "olmoe",
    "glm4-moe",
    "granite-moe",
    "gpt-oss",
    "phimoe",
}
"""They use the interfaces for attention and for experts, and functions for states, from transformers 5 on."""
NEW_INTERFACE |= {
    "lfm2",
    "lfm2-bias",
    "qwen3-next",
    "mamba",
    "falcon-mamba",
    "mamba2",
    "bamba",
    "falcon-h1",
    "granite4",
}
NEW_INTERFACE |= {
    "granite4-dense",
    "jamba",
    "bart",
    "codegen",
    "ctrl",
    "diffllama",
    "gptj",
    "gpt-neox-japanese",
    "roberta",
}
NEW_INTERFACE |= {"deepseek-v2", "deepseek-v3", "latent-wide-values", "hunyuan-moe", "gemma3n", "gpt-neo"}
NEW_MODELS = {
    "gemma4",
    "ministral3",
    "afmoe",
    "nemotron-h",
    "nemotron-h-moe",
    "lfm2-moe",
    "lfm3",
    "qwen3.5",
    "olmo-hybrid",
    "kimi-linear",
    "gemma4-shared-caches",
    "minicpm3",
    "nanochat",
    "indexed-attention",
}
"""transformers 4.57 does not have them, or not these classes."""


@pytest.mark.parametrize("name", DECODERS)
def test_architecture(name: str, tmp_path: Path) -> None:
    if OLD and name in NEW_MODELS:
        assert not hasattr(transformers, f"{DECODERS[name][0]}Config")
        return
    model = tiny(*DECODERS[name])
    if OLD and name in NEW_INTERFACE:
        refusals = r"attention|experts|does not run|off the original"
        with pytest.raises((UnsupportedError, CheckFailed), match=refusals):
            build(model)
        return
    check(model, Graph(model, tmp_path))


def check(model: nn.Module, graph: Graph) -> None:
    """A whole prompt, pieces and single tokens on a filled cache, padding on either side: each as transformers computes it."""
    random = np.random.default_rng(0)
    a, b = random.integers(3, 97, (2, 1, LENGTH))
    want_a, want_b = reference(model, a), reference(model, b)

    close(graph.run(a, ones(1, LENGTH))[0], want_a)
    close(graph.run(a, ones(1, LENGTH), keep=1)[0], want_a[:, -1:])
    _step_by_step(graph, a, want_a)
    for side in ("left", "right"):
        _padded(graph, (a, b), (want_a, want_b), side)


def _step_by_step(graph: Graph, ids: np.ndarray, want: np.ndarray) -> None:
    """Prefill of 12, then five tokens at once on the filled cache, then one at a time."""
    out = graph.run(ids[:, :12], ones(1, 12))
    out = graph.run(ids[:, 12:17], ones(1, 17), out[1:])
    close(out[0], want[:, 12:17])
    for end in range(18, LENGTH + 1):
        out = graph.run(ids[:, end - 1 : end], ones(1, end), out[1:])
        close(out[0], want[:, end - 1 : end])


def _padded(graph: Graph, rows: tuple[np.ndarray, np.ndarray], want: tuple[np.ndarray, np.ndarray], side: str) -> None:
    """Two rows of 14 and 9 tokens, padded on one side, then decoded together; each against its own unpadded run."""
    length, short = 14, 9
    real = slice(0, short) if side == "right" else slice(length - short, length)
    ids, mask = np.zeros((2, length), np.int64), np.zeros((2, length), np.int64)
    ids[0], mask[0] = rows[0][0, :length], 1
    ids[1, real], mask[1, real] = rows[1][0, :short], 1
    out = graph.run(ids, mask)
    close(out[0][0], want[0][0, :length])
    close(out[0][1, real], want[1][0, :short])
    for step in range(3):
        new = np.array([rows[0][0, length + step], rows[1][0, short + step]])[:, None]
        mask = np.concatenate([mask, ones(2, 1)], axis=1)
        out = graph.run(new, mask, out[1:])
        close(out[0][0, 0], want[0][0, length + step])
        close(out[0][1, 0], want[1][0, short + step])


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    prefix, settings, words = REFUSED[name]
    if OLD and name in NEW_MODELS:
        assert not hasattr(transformers, f"{prefix}Config")
        return
    with pytest.raises(UnsupportedError, match=words):
        build(tiny(prefix, settings))


def test_at_most_eleven_nodes_a_llama_layer(tmp_path: Path) -> None:
    graphs = [Graph(tiny("Llama", {"num_hidden_layers": n}), tmp_path).ir.graph for n in (2, 3)]
    assert len(list(graphs[1])) - len(list(graphs[0])) <= 11
    kinds = Counter(node.op_type for node in graphs[0])
    assert kinds["GroupQueryAttention"] == 2
    assert kinds["SkipSimplifiedLayerNormalization"] == 4
    assert not kinds["Reshape"] and not kinds["Transpose"] and not kinds["RotaryEmbedding"]


def test_one_symbolic_past_length(tmp_path: Path) -> None:
    graph = Graph(tiny("Llama", {}), tmp_path)
    assert {tuple(c.shape[i] for i in (0, 2)) for c in graph.caches} == {("batch_size", "past_sequence_length")}


def test_model_is_left_as_it_was() -> None:
    model = tiny("Gemma2", {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 16})
    ids = np.arange(3, 19)[None]
    before, state = reference(model, ids), {k: v.clone() for k, v in model.state_dict().items()}
    build(model)
    np.testing.assert_array_equal(reference(model, ids), before)
    assert model.config._attn_implementation == "eager"
    assert state.keys() == model.state_dict().keys()
    assert not [name for name, _ in model.named_buffers() if "edgekit" in name]


def test_unknown_attention_argument_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling_llama: Any = importlib.import_module("transformers.models.llama.modeling_llama")

    forward = modeling_llama.LlamaAttention.forward

    def with_biases(self: Any, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **kwargs, alibi=torch.zeros(4))

    model = tiny("Llama", {})
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", with_biases)
    with pytest.raises(UnsupportedError, match="attention argument 'alibi' is not supported"):
        build(model)


def test_what_the_models_own_code_raises_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    modeling_llama: Any = importlib.import_module("transformers.models.llama.modeling_llama")
    model, forward = tiny("Llama", {}), modeling_llama.LlamaMLP.forward

    def on_values(self: Any, x: torch.Tensor) -> Any:
        return forward(self, x) if x.sum() > 0 else forward(self, -x)

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", on_values)
    with pytest.raises(UnsupportedError, match="LlamaForCausalLM: its code does not run with edgekit's operators"):
        build(model)


def _after_mlp(monkeypatch: pytest.MonkeyPatch, change: Any) -> nn.Module:
    """A Llama that changes what its MLP gives in place."""
    modeling_llama: Any = importlib.import_module("transformers.models.llama.modeling_llama")
    forward = modeling_llama.LlamaMLP.forward

    def changed(self: Any, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = forward(self, x)
        change(out)
        return out

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", changed)
    return tiny("Llama", {})  # type: ignore[no-any-return]


def test_a_part_that_is_changed_in_place_is_changed_in_the_graph(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = _after_mlp(monkeypatch, lambda out: out[..., 8:24].mul_(-3.0))
    ids = np.arange(3, 19)[None]
    close(Graph(model, tmp_path).run(ids, ones(1, 16))[0], reference(model, ids))


def test_a_change_in_place_through_another_view_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _after_mlp(monkeypatch, lambda out: out[..., 3].mul_(-3.0))
    with pytest.raises(UnsupportedError, match=r"aten.mul_.Tensor changes a tensor through aten.select.int"):
        build(model)


def test_a_model_that_does_not_run_at_all_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("Llama", {})
    model.model.layers[0].mlp.down_proj = nn.Linear(8, 8)
    with pytest.raises(
        UnsupportedError, match=r"LlamaForCausalLM: its code does not run on token ids \(RuntimeError: mat1"
    ):
        build(model)


@pytest.mark.parametrize("mask", ["create_chunked_causal_mask"] + ([] if OLD else ["create_bidirectional_mask"]))
def test_other_masks_are_refused(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import masking_utils

    modeling_llama: Any = importlib.import_module("transformers.models.llama.modeling_llama")

    model = tiny("Llama", {})
    plain = modeling_llama.create_causal_mask
    monkeypatch.setattr(modeling_llama, mask, getattr(masking_utils, mask), raising=False)
    forward = modeling_llama.LlamaModel.forward

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if modeling_llama.create_causal_mask is not plain:
            getattr(modeling_llama, mask)(config=self.config)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", patched)
    with pytest.raises(UnsupportedError, match=f"{mask}: this mask is not supported"):
        build(model)


def test_a_substitution_that_changes_the_numbers_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.errors import CheckFailed
    from edgekit.frontend.decoder import substitute

    monkeypatch.setattr(
        substitute, "norm_weight", lambda m: (m.weight * 1.01, 1e-6) if "RMSNorm" in type(m).__name__ else None
    )
    with pytest.raises(CheckFailed, match="off the original"):
        build(tiny("Llama", {}))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt"])
def test_golden_logits_in_pieces_are_those_of_the_whole(name: str) -> None:
    model = tiny(*DECODERS[name])
    ids = np.random.default_rng(0).integers(3, 97, (1, 48))
    vector = text_vector(model, ids)
    whole = reference(model, ids)[0]
    close(vector["logits"], whole[-len(vector["logits"]) :])
    np.testing.assert_allclose(vector["top_values"][:, 0], whole.max(-1), rtol=1e-4)


@pytest.mark.parametrize("name", ["falcon"] if OLD else ["falcon", "mamba"])
def test_weights_that_a_model_reads_past_its_layers_are_loaded(name: str, tmp_path: Path) -> None:
    from edgekit.frontend import huggingface

    tiny(*DECODERS[name]).save_pretrained(tmp_path)
    build(huggingface.load(tmp_path).module)
