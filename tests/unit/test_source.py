"""Everything a model can be given as, and every refusal by its words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.errors import SourceError, UnsupportedError, UsageError
from edgekit.frontend.loading import load, load_module
from edgekit.frontend.streamed import streaming
from tests.support.tiny_decoders import build


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("Llama", {}).save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")


def test_directory(original: Path) -> None:
    found = load_module(str(original))
    assert (found.kind, found.task, found.architecture) == ("hf", "text-generation", "LlamaForCausalLM")
    assert not found.module.training


def test_weights_are_those_of_transformers(original: Path) -> None:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(3, 20)[None]
    module = load_module(str(original)).module
    assert module is not None
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(original)(input_ids=ids).logits
        with streaming(module):
            found = module(input_ids=ids).logits
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_unknown_task(original: Path) -> None:
    with pytest.raises(UsageError, match="task: 'poetry' is not one of text-generation"):
        load(str(original), task="poetry")


@pytest.mark.parametrize("spec", ["./nowhere", "nowhere/model.onnx", "~/nothing-here-either", "no\\where"])
def test_what_looks_like_a_path_is_no_hub_id(spec: str) -> None:
    with pytest.raises(SourceError, match="no such file or directory"):
        load(spec)


def test_hub_id_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="nobody/nothing-at-all"):
        load("nobody/nothing-at-all")


def test_truncated_weights(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SourceError, match=r"model\.safetensors"):
        load(str(checkpoint))


def test_missing_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="safetensors"):
        load(str(checkpoint))


def test_missing_tensor(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(SourceError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        load(str(checkpoint))


def test_tensor_of_another_shape(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.zeros(5, 64)
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(SourceError, match="up_proj"):
        load(str(checkpoint))


def test_damaged_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(SourceError, match=r"config\.json"):
        load(str(checkpoint))


def test_pickles_need_a_flag(checkpoint: Path) -> None:
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="allow-pickle"):
        load(str(checkpoint))
    assert load_module(str(checkpoint), allow_pickle=True).module is not None


class Bomb:
    """Unpickling this would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_pickles_that_run_code_are_refused_even_with_the_flag(checkpoint: Path, tmp_path: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": Bomb(tmp_path / "ran")}, checkpoint / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin"):
        load(str(checkpoint), allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_bitnet_without_quantization_config(checkpoint: Path) -> None:
    build("BitNet", {}).save_pretrained(checkpoint)
    with pytest.raises(SourceError, match="model_type bitnet without quantization_config"):
        load(str(checkpoint))


def test_rope_settings_of_an_older_transformers_are_used(checkpoint: Path) -> None:
    """transformers 4 wrote rope_theta at the top level; whatever is loaded must rotate with it."""

    def older(config: dict[str, Any]) -> None:
        config.pop("rope_parameters", None)
        config.update(rope_theta=12345.0, transformers_version="4.45.0")

    edit(checkpoint / "config.json", older)
    module: Any = load_module(str(checkpoint)).module
    frequencies = module.model.rotary_emb.inv_freq
    torch.testing.assert_close(frequencies, 1.0 / 12345.0 ** (torch.arange(0, 16, 2) / 16))


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "notes.txt", "model.tflite"])
def test_files_that_are_no_model(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"anything")
    with pytest.raises(SourceError, match=name.replace(".", r"\.")):
        load(str(tmp_path / name))


@pytest.mark.parametrize(
    ("suffix", "words"),
    [(".gguf", "not a GGUF file"), (".onnx", "not an ONNX file|graph is empty"), (".pt2", "not a .pt2 archive")],
)
def test_damaged_files(suffix: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x00garbage" * 9)
    with pytest.raises(SourceError, match=words):
        load(str(path))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "link.bin"])
def test_onnx_data_outside_the_directory(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(bytes(64))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "link.bin").symlink_to(tmp_path / "secret.bin")
    weight = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[4, 4], data_location=onnx.TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value=location)
    info = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [info("x", 1, [1, 4])], [info("y", 1, [1, 4])], [weight])
    (tmp_path / "model" / "m.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(SourceError, match=r"is not a path below|goes through the link"):
        load(str(tmp_path / "model" / "m.onnx"))


def no_inputs() -> nn.Module:
    return nn.Linear(4, 4)


def not_a_module() -> str:
    return "model"


def wrong_inputs() -> tuple[nn.Module, tuple[torch.Tensor]]:
    return nn.Linear(4, 4), (torch.zeros(2, 5),)


def explodes() -> nn.Module:
    raise RuntimeError("no weights today")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_inputs", "without example inputs"),
        ("not_a_module", "nn.Module"),
        ("wrong_inputs", "wrong_inputs"),
        ("explodes", "no weights today"),
        ("no_inptus", "no_inputs"),
    ],
)
def test_factories(name: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        load(f"tests.unit.test_source:{name}")


def test_factory_of_a_missing_module() -> None:
    with pytest.raises(SourceError, match="no_such_module"):
        load("no_such_module:build")


def test_encoder_declares_its_pooling(tmp_path: Path) -> None:
    from tools.demo_models import minilm

    found = load_module(str(minilm()))
    assert found.task == "feature-extraction"
    ids = torch.tensor([[101, 7592, 102, 0], [101, 2023, 2003, 102]])
    with torch.no_grad():
        out = found.module(input_ids=ids, attention_mask=(ids > 0).long())
    assert out["last_hidden_state"].shape == (2, 4, 384)
    np.testing.assert_allclose(out["sentence_embedding"].norm(dim=1), 1.0, rtol=1e-5)


def test_gguf_reads_only_language_models(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(64))
    with pytest.raises(UnsupportedError, match="task 'generic' cannot be made of it"):
        load(str(path), task="generic")
    with pytest.raises(SourceError, match="cannot read it"):
        load(str(path))
