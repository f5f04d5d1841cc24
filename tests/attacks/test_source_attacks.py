"""Checkpoints made to run code, to fill the memory or to confuse the parser: refused by name before transformers or torch acts."""

from __future__ import annotations

import json
import shutil
import sys
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from edgekit.errors import SourceError, UnsupportedError
from edgekit.frontend.loading import load
from edgekit.frontend.source import ModuleSource
from tests.support.tiny_decoders import build


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    build("Llama", {}).save_pretrained(path)
    return path


@pytest.fixture
def checkpoint(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "tiny"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What transformers asks the package ``kernels`` for, which is installed here and would import it."""
    from transformers.integrations import hub_kernels

    asked: list[str] = []

    def get_kernel(name: str, *args: object, **options: object) -> object:
        asked.append(name)
        return types.SimpleNamespace(flash_attn_varlen_func=None)

    monkeypatch.setattr(hub_kernels, "is_kernels_available", lambda *_: True)
    monkeypatch.setattr(hub_kernels, "get_kernel", get_kernel)
    monkeypatch.setattr("transformers.modeling_utils.is_kernels_available", lambda *_: True)
    return asked


def edit(directory: Path, change: dict[str, Any]) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")


def refused(source: Path, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message) as refusal:
        load(str(source))
    assert "\n" not in str(refusal.value)


KERNEL = "somebody/kernel@main:forward"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"_attn_implementation": "somebody/kernel"}, "_attn_implementation 'somebody/kernel'"),
        ({"attn_implementation": KERNEL}, f"attn_implementation '{KERNEL}'"),
        ({"_attn_implementation_internal": KERNEL}, "_attn_implementation_internal"),
        ({"_attn_implementation": {"": "sdpa", "text_config": "paged|a/b"}}, "_attn_implementation "),
        ({"experts_implementation": "a/b"}, "experts_implementation 'a/b'"),
        ({"text_config": {"_attn_implementation": "a/b"}}, r"text_config\._attn_implementation 'a/b'"),
        ({"deep": [{"er": {"_experts_implementation": ["a/b"]}}]}, r"deep\.er\._experts_implementation"),
        ({"kernel_config": {"RMSNorm": "a/b:RMSNorm"}}, "kernel_config"),
        ({"use_kernels": True}, "use_kernels 'True'"),
        ({"transformers_weights": "../elsewhere.safetensors"}, r"transformers_weights '\.\./elsewhere"),
        ({"backbone": "somebody/backbone"}, "backbone 'somebody/backbone'"),
        ({"backbone_config": {"backbone": "hf-hub:a/b"}}, r"backbone_config\.backbone 'hf-hub:a/b'"),
    ],
)
def test_a_key_that_names_code_or_files_elsewhere(
    checkpoint: Path, hub: list[str], change: dict[str, Any], key: str
) -> None:
    edit(checkpoint, change)
    refused(
        checkpoint, UnsupportedError, rf"config\.json: {key}.* would load code or files from elsewhere, which edgekit"
    )
    assert hub == []


@pytest.mark.parametrize("name", ["sdpa", "eager", "flash_attention_2", "flash_attention_3", "nonsense"])
def test_a_plain_way_of_attention_is_not_the_files_to_choose(checkpoint: Path, hub: list[str], name: str) -> None:
    """transformers takes a kernel of the hub where flash attention is not installed."""
    edit(checkpoint, {"_attn_implementation": name, "experts_implementation": name, "use_kernels": False})
    assert isinstance(load(str(checkpoint)), ModuleSource) and hub == []


def test_code_that_comes_along_is_not_run(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ran = checkpoint / "ran"
    code = f"import pathlib\npathlib.Path({str(ran)!r}).touch()\nraise SystemExit('it ran')\n"
    for name in ("modeling_x.py", "tokenization_x.py", "custom_generate/generate.py"):
        (checkpoint / name).parent.mkdir(exist_ok=True)
        (checkpoint / name).write_text(code, encoding="utf-8")
    classes = {"AutoConfig": "modeling_x.C", "AutoModelForCausalLM": "a/b--modeling_x.M", "AutoModel": "modeling_x.M"}
    edit(checkpoint, {"auto_map": classes, "trust_remote_code": True, "more": {"auto_map": classes}})
    settings = {
        "auto_map": {"AutoTokenizer": ["tokenization_x.T", None]},
        "tokenizer_class": "T",
        "trust_remote_code": True,
    }
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (checkpoint / "vocab.json").write_text("{}", encoding="utf-8")  # a tokenizer would be made of it
    generation = json.loads((checkpoint / "generation_config.json").read_text(encoding="utf-8"))
    generation |= {"custom_generate": "a/b", "trust_remote_code": True}
    (checkpoint / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    load(str(checkpoint))
    assert not ran.exists()
    assert "Do you wish to run" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, 4,096 at most"),
        ({"text_config": {"num_experts": 10**6}}, r"text_config\.num_experts is 1000000, 4,096 at most"),
        ({"n_layer": 99_999}, "n_layer is 99999, 4,096 at most"),
        ({"depths": [2, 10**7]}, "depths is 10000000, 4,096 at most"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000, 2,147,483,648 at most"),
        ({"vocab_size": int("9" * 4000)}, "vocab_size is 9{40}, 2,147,483,648 at most"),
        ({"vocab_size": 2_000_000_000}, r"describes a model of [0-9,]+ values, the weight files have [0-9,]+ bytes"),
    ],
)
def test_a_model_of_impossible_size(checkpoint: Path, change: dict[str, Any], message: str) -> None:
    edit(checkpoint, change)
    refused(checkpoint, SourceError, message)


TEXTS = [
    ('{"a": 1' + "0" * 5000 + "}", r"not readable as JSON \(Exceeds the limit"), ("[" * 100_000, "nested too deeply"),
    ('{"a":' + "[" * 200 + "]" * 200 + "}", "nested deeper than 100 levels"), ("[]", "holds a list, expected a JSON object"),
    ('{"model_type": "llama", "model_type": "gpt2"}', "'model_type' stands twice"), ('{"a": 1e999}', "too large a number"),
    ("\ud800", "not readable as JSON"), ("", "not readable as JSON"), (" " * (64 << 20) + "{}", "more than 67,108,864 bytes"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(TEXTS)))
def test_config_that_is_no_plain_json(checkpoint: Path, number: int) -> None:
    text, message = TEXTS[number]
    (checkpoint / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(checkpoint, SourceError, rf"config\.json: .*{message}.*; fetch the file again")


@pytest.mark.parametrize(
    "entry", [3, {"type": 1}, {"type": "x.Pooling", "path": "../.."}, {"type": "x.P", "path": "/etc"}]
)
def test_modules_that_lie_elsewhere(checkpoint: Path, entry: object) -> None:
    (checkpoint / "modules.json").write_text(json.dumps([entry]), encoding="utf-8")
    refused(checkpoint, SourceError, r"modules\.json: .* is no module with a type and a path below it")


# .pt2 files


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pt2") / "linear.pt2"
    program = torch.export.export(nn.Linear(4, 2), (), {"input": torch.zeros(1, 4)})
    torch.export.save(program, path)
    return path


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes], squeeze: bool = False) -> Path:
    """The archive with other contents."""
    way = zipfile.ZIP_DEFLATED if squeeze else zipfile.ZIP_STORED
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", way) as new:
        for info in old.infolist():
            new.writestr(info.filename, change(info.filename, old.read(info.filename)))
    return target


@pytest.mark.parametrize("name", ["models/model.json", "weights/model_weights_config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a": [', "is no valid JSON"), (b"[" * 100_000, "is no valid JSON .nested"), (b"[1]", "holds a list, expected an object"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "nested deeper than 100 levels"), (b"\xff\xfe", "is no valid JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is no valid JSON .Exceeds the limit"), (b"", "is no valid JSON"),
    ],
)  # fmt: skip
def test_an_exported_program_with_damaged_json(
    exported: Path, tmp_path: Path, name: str, text: bytes, message: str
) -> None:
    evil = rewritten(exported, tmp_path / "evil.pt2", lambda entry, data: text if entry.endswith(name) else data)
    refused(evil, SourceError, message)


@pytest.mark.parametrize(
    "config", [b'{"config": [1]}', b'{"config": {"a": 3}}', b'{"config": {"a": {"use_pickle": true}}}']
)
def test_an_exported_program_with_strange_payloads(exported: Path, tmp_path: Path, config: bytes) -> None:
    name = "weights/model_weights_config.json"
    evil = rewritten(exported, tmp_path / "evil.pt2", lambda entry, data: config if entry.endswith(name) else data)
    refused(evil, SourceError, "is no description of a tensor|is pickled")


def test_an_exported_program_that_grows_when_it_is_read(exported: Path, tmp_path: Path) -> None:
    evil = rewritten(exported, tmp_path / "evil.pt2", lambda entry, data: data + b" " * (1 << 26), squeeze=True)
    refused(evil, SourceError, "is compressed, torch.export.save stores them as they are")


def test_every_cut_of_an_exported_program_is_refused(exported: Path, tmp_path: Path) -> None:
    data, evil = exported.read_bytes(), tmp_path / "evil.pt2"
    for share in range(0, 100, 7):
        evil.write_bytes(data[: share * len(data) // 100])
        refused(evil, SourceError, "truncated or not a .pt2 archive|cannot load it|no entry archive_format")


def test_kernels_of_the_hub_are_switched_off_for_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgekit.cli import main

    monkeypatch.delenv("USE_HUB_KERNELS", raising=False)
    monkeypatch.setattr(sys, "argv", ["edgekit", "--version"])
    with pytest.raises(SystemExit):
        main()
    import os

    assert os.environ["USE_HUB_KERNELS"] == "NO"
