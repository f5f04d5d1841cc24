"""Weights that stay in the checkpoint: what the layers compute, and what memory they take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgekit.frontend.bitnet_weights import unpack
from edgekit.frontend.checkpoint import open_checkpoint
from edgekit.frontend.loading import load_module
from edgekit.frontend.streamed import (
    CHUNK,
    attach,
    materialize,
    placeholder,
    read_rows,
    stored_weight,
    streaming,
    widen,
)
from edgekit.lowbit.formats import CODECS, detect_ternary, pack_t2, unpack_t2
from edgekit.lowbit.weights import RowWeight, stacked


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    llama: Any = LlamaForCausalLM(config)
    llama.to(torch.bfloat16).save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def module_of(path: Path) -> Any:
    return load_module(str(path)).module


def test_streamed_layers_compute_as_the_loaded_model(llama: Path) -> None:
    from transformers import LlamaForCausalLM

    ids = torch.arange(3, 20)[None]
    model = widen(module_of(llama))
    loaded: Any = LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16)
    expected = loaded.float()
    with torch.no_grad(), streaming(model):
        found = model(input_ids=ids).logits
        torch.testing.assert_close(found, expected(input_ids=ids).logits, rtol=0, atol=1e-5)
        materialize(model)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, found, rtol=0, atol=1e-5)


def test_placeholders_take_no_memory_and_give_no_numbers(llama: Path) -> None:
    model = module_of(llama)
    streamed = [m for m in model.modules() if stored_weight(m) is not None]
    assert len(streamed) == 2 * 7 + 2  # the head is tied to the embedding
    assert all(m.weight.untyped_storage().nbytes() == 4 for m in streamed)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with torch.no_grad():
        assert model(input_ids=torch.tensor([[1, 2]])).logits.isnan().all()


def test_a_tied_pair_stored_twice_is_left_to_the_loader(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, llama / "model.safetensors", {"format": "pt"})
    model = module_of(llama)
    assert stored_weight(model.lm_head) is None
    assert stored_weight(model.model.layers[0].mlp.up_proj) is not None
    assert torch.equal(model.lm_head.weight, tensors["lm_head.weight"])


def test_a_loader_that_rearranges_weights_is_noticed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3))
    weight = RowWeight((3, 4), lambda start, stop: np.ones((stop - start, 4), np.float32))
    assert not attach(model, {"0.weight": placeholder((3, 4))}, {"0.weight": weight})
    assert stored_weight(model[0]) is None


def test_half_precision_modules_are_widened_without_a_copy() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 32).half(), torch.nn.LayerNorm(32).half())
    expected = model.get_parameter("0.weight").float()
    widen(model)
    assert stored_weight(model[0]) is not None
    x = torch.randn(2, 64)
    with streaming(model):
        found = torch.nn.functional.linear(x, model.get_parameter("0.weight"))
    torch.testing.assert_close(found, x @ expected.t())
    assert model[1].weight.dtype == torch.float32


def test_large_layers_are_multiplied_piece_by_piece() -> None:
    asked = []

    def read(start: int, stop: int) -> np.ndarray:
        asked.append((stop - start) * 1024)
        return np.full((stop - start, 1024), start, np.float32)

    layer = torch.nn.Linear(1, 1, bias=False)
    layer.weight = torch.nn.Parameter(placeholder((20000, 1024)), requires_grad=False)
    layer.__dict__["stored_weight"] = RowWeight((20000, 1024), read)
    with streaming(layer):
        out = layer(torch.ones(1, 1024))
    assert max(asked) <= CHUNK
    assert sum(asked) == 20000 * 1024
    assert out[0, 0] == 0 and out[0, -1] == 1024 * 16384


def test_rows_come_from_the_file(llama: Path) -> None:
    stored = open_checkpoint(llama, allow_pickle=False).tensors["model.layers.1.mlp.up_proj.weight"]
    whole = load_file(llama / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(read_rows(stored, 5, 9), whole[5:9])


@given(rows=st.integers(1, 23), columns=st.integers(1, 5), start=st.integers(0, 22), count=st.integers(1, 23))
def test_any_rows_of_packed_codes(rows: int, columns: int, start: int, count: int) -> None:
    from edgekit.frontend.bitnet_weights import _codes_between

    start = min(start, rows - 1)
    stop = min(start + count, rows)
    quarter = (rows + 3) // 4
    packed = torch.from_numpy(
        np.random.default_rng(rows).choice([0, 1, 4, 21, 38, 134, 170], (quarter, columns)).astype(np.uint8)
    )
    some = _codes_between(lambda a, b: packed[a:b], quarter, start, stop)
    assert torch.equal(some, unpack(packed, rows)[start:stop])


def test_stacked_weights_keep_their_codes_and_scales() -> None:
    random = np.random.default_rng(0)
    codes = [random.integers(-1, 2, (n, 130)).astype(np.int8) for n in (3, 5)]
    parts = [
        RowWeight(
            (len(c), 130),
            lambda a, b, c=c, s=s: c[a:b] * np.float32(s),  # type: ignore[misc]
            lambda a, b, c=c: c[a:b],  # type: ignore[misc]
            np.full(1, s, np.float32),
        )
        for c, s in zip(codes, (0.5, 2.0), strict=True)
    ]
    both = stacked(parts)
    np.testing.assert_array_equal(detect_ternary(both), np.repeat(np.array([0.5, 2.0], np.float32), [3, 5]))
    np.testing.assert_array_equal(both[2:4], np.stack([codes[0][2] * np.float32(0.5), codes[1][0] * np.float32(2)]))
    packed = CODECS["t2"].quantize(both, 0)
    np.testing.assert_array_equal(unpack_t2(packed), np.concatenate(codes))
    plain = stacked([parts[0], np.ones((2, 130), np.float32)])
    assert plain.scales is None
    np.testing.assert_array_equal(plain[2:5], np.concatenate([parts[0][2:3], np.ones((2, 130))]))
    assert np.array_equal(pack_t2(codes[0], np.ones(1, np.float32)).data, packed.data[:3])
