"""Bundles changed on purpose: each is refused with a message that says where."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from tests.support.tiny_bundle import decoder_bundle

Edit = Callable[[Path], None]
links = pytest.mark.skipif(os.name == "nt", reason="links need a privilege on Windows")


@pytest.fixture
def bundle(tmp_path: Path) -> Iterator[Path]:
    """A good bundle, and a file outside of it that nothing may read."""
    (tmp_path / "secret.bin").write_bytes(bytes(1 << 20))
    return (yield decoder_bundle(tmp_path / "b").directory)


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "manifest.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


def edit_graph(directory: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    path = directory / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())
    edit_manifest(directory, lambda data: resize(data, "model.onnx", path.stat().st_size))


def resize(data: dict[str, Any], name: str, size: int) -> None:
    next(f for f in data["files"] if f["path"] == name)["bytes"] = size


def refused(directory: Path, message: str) -> None:
    with pytest.raises(BundleError) as refusal:
        Bundle.open(directory)
    text = str(refusal.value)
    assert re.search(message, text), text
    assert "\n" not in text


def external(
    name: str = "evil", kind: int = TensorProto.FLOAT, dims: tuple[int, ...] = (4,), **entries: str
) -> TensorProto:
    tensor = TensorProto(name=name, data_type=kind, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "model.onnx.data", "offset": "0", "length": "16", **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def test_the_bundle_itself_is_good(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.check_hashes()
    assert opened.tensor("embed").shape == (259, 32)


# Paths

OUTSIDE = [
    "../secret.bin", "a/../../secret.bin", "..", ".", "./model.onnx", "vectors/", "/etc/passwd", "//host/share", "C:/x", "C:x",
    "..\\secret.bin", "a\\b", "", "vectors//text.safetensors", "a\0b", "a\nb", "\x1b[2Jx", "*/_ORT_MEM_ADDR_/*", "nul", "COM1.txt",
    "dots./x", "space ", "x" * 5000, "~/x\x7f", "a:stream",
]  # fmt: skip


@pytest.mark.parametrize("name", OUTSIDE)
def test_listed_path_that_is_not_plain(bundle: Path, name: str) -> None:
    edit_manifest(bundle, lambda data: data["files"].append({"path": name, "bytes": 1, "sha256": ""}))
    refused(bundle, r"manifest\.json: (path '.*' is not a plain relative path inside the bundle|'x+' is missing)")


@pytest.mark.parametrize("name", OUTSIDE)
def test_external_data_elsewhere(bundle: Path, name: str) -> None:
    edit_graph(bundle, lambda model: model.graph.initializer.append(external(location=name)))
    refused(
        bundle, r"tensor 'evil': (path .* is not a plain relative path|external data in 'x+', which the manifest does)"
    )


def test_external_data_in_a_file_nobody_lists(bundle: Path) -> None:
    (bundle / "more.data").write_bytes(bytes(64))
    edit_graph(bundle, lambda model: model.graph.initializer.append(external(location="more.data")))
    refused(bundle, r"tensor 'evil': external data in 'more\.data', which the manifest does not list$")


@links
@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "manifest.json", "vectors/text.safetensors"])
def test_symbolic_link(bundle: Path, name: str) -> None:
    (bundle / name).rename(bundle.parent / "moved")
    (bundle / name).symlink_to(bundle.parent / "moved")
    refused(bundle, rf"{re.escape(name)}: is a link or no file at all; a bundle holds plain files only$")


@links
def test_dangling_link(bundle: Path) -> None:
    (bundle / "model.onnx.data").unlink()
    (bundle / "model.onnx.data").symlink_to(bundle / "nothing")
    refused(bundle, r"model\.onnx\.data: is a link or no file at all")


@links
def test_linked_directory(bundle: Path) -> None:
    (bundle / "vectors").rename(bundle.parent / "moved")
    (bundle / "vectors").symlink_to(bundle.parent / "moved", target_is_directory=True)
    refused(bundle, r"text\.safetensors: lies behind a link; a bundle holds plain directories only$")


@links
def test_hard_link(bundle: Path) -> None:
    os.link(bundle / "model.onnx.data", bundle.parent / "second")
    refused(bundle, r"model\.onnx\.data: has 2 hard links; a bundle's files are its own, copy them$")


@links
def test_a_link_to_a_bundle_is_the_users_own_choice(bundle: Path) -> None:
    (bundle.parent / "link").symlink_to(bundle, target_is_directory=True)
    assert Bundle.open(bundle.parent / "link").tensor("embed").shape == (259, 32)


def test_directory_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    refused(bundle, r"model\.onnx: is a link or no file at all")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_not_waited_for(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    refused(bundle, r"model\.onnx: is a link or no file at all")


# Files


def test_no_directory(tmp_path: Path) -> None:
    refused(tmp_path / "none", r"none: no such directory; give a bundle that `edgekit export -o` made$")


def test_no_manifest(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    refused(bundle, r"b: no manifest\.json; this is not an edgekit bundle$")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "vectors/text.safetensors", "tokenizer.json"])
def test_missing_file(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, rf"manifest\.json: '{re.escape(name)}' is missing; export or download the bundle again$")


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "vectors/text.safetensors"])
@pytest.mark.parametrize("change", [-1, 1])
def test_size_that_is_not_the_manifests(bundle: Path, name: str, change: int) -> None:
    data = (bundle / name).read_bytes()
    (bundle / name).write_bytes(data[:-1] if change < 0 else data + b"x")
    size = len(data)
    refused(bundle, rf"{re.escape(name)}: {size + change:,} bytes, the manifest says {size:,}; export or download")


def test_wrong_hash(bundle: Path) -> None:
    data = bytearray((bundle / "model.onnx.data").read_bytes())
    data[-1] ^= 1
    (bundle / "model.onnx.data").write_bytes(data)
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx\.data: sha256 is not the manifest's; the file was changed"):
        opened.check_hashes()


def test_listed_twice(bundle: Path) -> None:
    edit_manifest(bundle, lambda data: data["files"].append({**data["files"][-1], "path": "MODEL.onnx"}))
    refused(bundle, r"'MODEL\.onnx' is listed twice \(upper and lower case are one\)$")


def test_graph_not_listed(bundle: Path) -> None:
    edit_manifest(bundle, lambda data: data.update(files=[f for f in data["files"] if f["path"] != "model.onnx"]))
    refused(bundle, r"model\.onnx is not among the listed files$")


def test_vector_not_listed(bundle: Path) -> None:
    edit_manifest(bundle, lambda data: data["vectors"].append({"file": "../secret.bin", "kind": "text"}))
    refused(bundle, r"vector '\.\./secret\.bin' is not among the listed files$")


def test_data_cut_after_opening(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / "model.onnx.data").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"model\.onnx\.data: cannot be mapped"):
        opened.tensor("embed")


def test_unreadable_vector(bundle: Path) -> None:
    path = bundle / "vectors" / "text.safetensors"
    path.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    edit_manifest(bundle, lambda data: resize(data, "vectors/text.safetensors", 10))
    with pytest.raises(BundleError, match=r"text\.safetensors: golden vector cannot be read"):
        Bundle.open(bundle).vectors()


# Manifest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"manifest\.json: not valid JSON"),
        ("[]", r"manifest\.json: no schema_version; this is not an edgekit bundle, or a damaged one$"),
        ("{}", r"no schema_version"),
        ('{"schema_version": true}', r"no schema_version"),
        ('{"schema_version": "1"}', r"no schema_version"),
        ('{"schema_version": 0}', r"no schema_version"),
        ('{"schema_version": 1}', r"manifest\.json: manifest: missing key 'task'$"),
        ('{"schema_version": 2, "what": "ever"}',
         r"schema_version 2, this edgekit reads up to 1; the bundle was written by a newer edgekit: pip install --upgrade edgekit$"),
        ('{"schema_version": 1, "schema_version": 1}', r"not valid JSON \('schema_version' stands twice\)"),
        ('{"schema_version": 1, "a": {"b": [{"c": 1, "c": 2}]}}', r"not valid JSON \('c' stands twice\)"),
        ('{"schema_version": NaN}', r"not valid JSON \(NaN is not a JSON number\)"),
        ('{"schema_version": 1, "x": -Infinity}', r"not valid JSON \(-Infinity is not a JSON number\)"),
        ('{"schema_version": 1, "x": 1e999}', r"not valid JSON \(1e999 is too large a number\)"),
        ('{"schema_version": 1' + "0" * 5000 + "}", r"not valid JSON"),
        ('{"schema_version": 1' + "0" * 4000 + "}", r"written by a newer edgekit"),
        ("[" * 200_000, r"not valid JSON"),
        ('{"a":' * 100_000, r"not valid JSON"),
        ('{"schema_version": 1, "extra\\ud800": 1}', r"unknown key 'extra\\ud800'"),
        ("\ufeff{}", r"not valid JSON"),
    ],
)  # fmt: skip
def test_manifest_text(bundle: Path, text: str, message: str) -> None:
    (bundle / "manifest.json").write_text(text, encoding="utf-8")
    refused(bundle, message)


def test_manifest_that_is_no_text(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00\x01")
    refused(bundle, r"manifest\.json: not UTF-8 text")


def test_manifest_that_is_too_large(bundle: Path) -> None:
    with (bundle / "manifest.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)
    refused(bundle, r"manifest\.json: 67,108,865 bytes, 67,108,864 at most; no manifest is that large$")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("task", "text_generation", r"manifest\.task: 'text_generation' is not one of text-generation, "),
        ("nodes", "many", r"manifest\.nodes: expected int, got str \('many'\)$"),
        ("news", 1, r"manifest: unknown key 'news'; did you mean 'nodes'\?"),
        ("files", {"a": 1}, r"manifest\.files: expected a list, got dict$"),
        ("files", [{"path": "x", "bytes": 1.5, "sha256": ""}], r"manifest\.files\[0\]\.bytes: expected int, got float"),
        ("files", [{"path": "model.onnx", "bytes": -1, "sha256": ""}], r"bytes, the manifest says -1"),
        (
            "inputs",
            [{"name": "x", "dtype": "float", "dims": [None]}],
            r"manifest\.inputs\[0\]\.dims\[0\]: expected int",
        ),
        ("taps", {"layer": 3}, r"manifest\.taps\.layer: expected str, got int"),
        ("evaluation", {"original_perplexity": "low"}, r"manifest\.evaluation\.original_perplexity: expected float"),
        ("layers", [{"name": "a"}], r"manifest\.layers\[0\]: missing key 'format'$"),
        (
            "evaluation",
            {"original_perplexity": 10**399},
            r"original_perplexity: an integer of 400 digits, 64 bits at most",
        ),
        ("nodes", 10**30, r"manifest\.nodes: an integer of 31 digits, 64 bits at most$"),
    ],
)
def test_manifest_field(bundle: Path, key: str, value: object, message: str) -> None:
    edit_manifest(bundle, lambda data: data.update({key: value}))
    refused(bundle, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("layers", 10**9, r"manifest\.decoder: 1000000000 layers, but 3 kv_heads and 3 head_dim$"),
        ("layers", -3, r"manifest\.decoder: -3 layers, but 3 kv_heads and 3 head_dim$"),
        ("kv_heads", [1, 10**12, 1], r"decoder\.kv_heads: 1000000000000 is not between 1 and 4,096$"),
        ("head_dim", [16, 0, 16], r"decoder\.head_dim: 0 is not between 1 and 65,536$"),
        ("vocab_size", 10**10, r"decoder\.vocab_size: 10000000000 is not between 1 and 134,217,728$"),
        ("max_length", -1, r"decoder\.max_length: -1 is not between 1 and 134,217,728$"),
    ],
)
def test_sizes_that_buffers_are_made_of(bundle: Path, key: str, value: object, message: str) -> None:
    edit_manifest(bundle, lambda data: data["decoder"].update({key: value}))
    refused(bundle, message)


# Graph


def test_graph_that_is_no_protobuf(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"\xff" * 64)
    edit_manifest(bundle, lambda data: resize(data, "model.onnx", 64))
    refused(bundle, r"model\.onnx: not a readable ONNX file; export or download the bundle again$")


def test_graph_that_is_too_large(bundle: Path) -> None:
    size = (256 << 20) + 1
    with (bundle / "model.onnx").open("r+b") as file:
        file.truncate(size)
    edit_manifest(bundle, lambda data: resize(data, "model.onnx", size))
    refused(bundle, r"model\.onnx: 268,435,457 bytes, 268,435,456 at most; weights belong into the data file$")


def test_name_that_is_no_text(bundle: Path) -> None:
    data = (bundle / "model.onnx").read_bytes()
    assert data.count(b"length") > 1
    (bundle / "model.onnx").write_bytes(data.replace(b"length", b"len\xff\xfeh"))
    refused(bundle, r"model\.onnx: a name in it is no UTF-8 text; export or download the bundle again$")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (external(offset="-4096"), r"offset '-4096' is not a whole number of bytes"),
        (external(offset="1e3"), r"offset '1e3' is not a whole number"),
        (external(offset="0x10"), r"offset '0x10' is not a whole number"),
        (external(offset=" 16"), r"offset ' 16' is not a whole number"),
        (external(offset="١٢"), r"offset '١٢' is not a whole number"),
        (external(offset="9" * 30), r"offset '9+' is not a whole number"),
        (external(offset="9" * 5000), r"offset '9{40}' is not a whole number"),
        (external(offset=str(2**63)), r"bytes 9,223,372,036,854,775,808 to .* cannot hold the 16 bytes of its shape"),
        (external(length="15"), r"bytes 0 to 15 of model\.onnx\.data .* cannot hold the 16 bytes of its shape"),
        (external(length="17"), r"cannot hold the 16 bytes"),
        (external(length=""), r"length '' is not a whole number"),
        (external(dims=(1 << 20,), length=str(4 << 20)), r"cannot hold the 4,194,304 bytes"),
        (external(dims=(-4,)), r"impossible size -4"),
        (external(dims=(1 << 62, 4), length="16"), r"impossible size 4611686018427387904"),
        (external(dims=(1 << 40,) * 33), r"33 dimensions, 32 at most; the file is damaged$"),
        (external(dims=(1 << 40, 1 << 40), length="16"), r"cannot hold the 4,835,703,278,458,516,698,824,704 bytes"),
        (external(kind=TensorProto.STRING), r"external data of type STRING; only numbers can be stored outside the graph$"),
        (external(kind=0), r"external data of type 0;"),
        (external(kind=99), r"external data of type 99"),
        (external(basepath="/etc"), r"external data has repeated or unknown fields \['basepath', 'length'"),
        (external(offset="8"), r"two tensors overlap in model\.onnx\.data \(bytes 0 to 33,152 and 8 to 24\)"),
        (TensorProto(name="evil", data_type=TensorProto.FLOAT, dims=[1 << 40], raw_data=b"1234"), r"does not hold what its type and shape"),
        (TensorProto(name="evil", data_type=99, raw_data=b"1"), r"does not hold what its type and shape say"),
        (TensorProto(name="evil", data_type=TensorProto.INT4, dims=[1 << 40], raw_data=b"1"), r"does not hold what its"),
        (TensorProto(name="evil", data_type=TensorProto.FLOAT, dims=[-1], float_data=[1.0]), r"impossible size -1"),
        (TensorProto(name="embed", data_type=TensorProto.FLOAT, dims=[1], float_data=[1.0]), r"'embed': stands twice in the graph"),
    ],
)  # fmt: skip
def test_tensor(bundle: Path, tensor: TensorProto, message: str) -> None:
    edit_graph(bundle, lambda model: model.graph.initializer.append(tensor))
    refused(bundle, message)


def test_repeated_external_field(bundle: Path) -> None:
    tensor = external()
    tensor.external_data.add(key="location", value="../secret.bin")
    edit_graph(bundle, lambda model: model.graph.initializer.append(tensor))
    refused(bundle, r"external data has repeated or unknown fields \['length', 'location', 'offset'\]$")


def in_attribute(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external(location="../secret.bin")))


def in_attribute_list(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("t", [external(location="../secret.bin")]))


def in_subgraph(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [], initializer=[external(location="../secret.bin")])
    outer = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=inner)], "outer", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["z"], then_branch=outer, else_branch=outer))


def in_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=external(location="../secret.bin"))
    model.functions.append(helper.make_function("ai.edgekit", "F", [], ["c"], [node], [helper.make_opsetid("", 21)]))


def in_sparse_initializer(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=external(location="../secret.bin"), dims=[9]))


def in_sparse_attribute(model: onnx.ModelProto) -> None:
    sparse = onnx.SparseTensorProto(
        values=helper.make_tensor("v", 1, [1], [1.0]), indices=external(location="../secret.bin")
    )
    attribute = onnx.AttributeProto(name="s", type=onnx.AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    model.graph.node[0].attribute.append(attribute)


def in_training(model: onnx.ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(external(location="../secret.bin"))


@pytest.mark.parametrize(
    "hide",
    [
        in_attribute,
        in_attribute_list,
        in_subgraph,
        in_function,
        in_sparse_initializer,
        in_sparse_attribute,
        in_training,
    ],
)
def test_every_place_a_tensor_can_be(bundle: Path, hide: Callable[[onnx.ModelProto], None]) -> None:
    edit_graph(bundle, hide)
    refused(bundle, r"tensor 'evil': path '\.\./secret\.bin' is not a plain relative path inside the bundle")


def test_sharing_all_bytes_is_allowed(bundle: Path) -> None:
    def share(model: onnx.ModelProto) -> None:
        copy = TensorProto()
        copy.CopyFrom(next(t for t in model.graph.initializer if t.name == "embed"))
        copy.name, copy.dims[:] = "again", [32, 259]
        model.graph.initializer.append(copy)

    edit_graph(bundle, share)
    opened = Bundle.open(bundle)
    np.testing.assert_array_equal(opened.tensor("again").ravel(), opened.tensor("embed").ravel())


def test_unknown_tensor(bundle: Path) -> None:
    with pytest.raises(BundleError, match=r"no initializer 'w'; the manifest and the graph do not belong together$"):
        Bundle.open(bundle).tensor("w")


def test_what_is_read_cannot_be_written(bundle: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        Bundle.open(bundle).tensor("embed")[0, 0] = 1
