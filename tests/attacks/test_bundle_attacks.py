"""Bundles changed on purpose: each is refused with a message that says where."""

from __future__ import annotations

import hashlib
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
from safetensors.numpy import load_file, save_file

from edgekit.bundle import Bundle
from edgekit.errors import BundleError
from edgekit.parity import verify
from tests.support.tiny_bundle import decoder_bundle
from tests.support.tiny_models import linear_bundle

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
        ('{"schema_version": 5, "what": "ever"}',
         r"schema_version 5, this edgekit reads up to 4; the bundle was written by a newer edgekit: pip install --upgrade edgekit$"),
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


# The interface


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["inputs"].append({"name": "more", "dtype": "float", "dims": [1]}), "has no input 'more'"),
        (lambda data: data["inputs"].pop(0), "has an input 'input_ids' that the manifest does not list"),
        (lambda data: data["outputs"].append({"name": "z", "dtype": "float", "dims": []}), "has no output 'z'"),
        (lambda data: data.update(taps={"layers.0": "nowhere"}), "has no value 'nowhere' to tap"),
        (
            lambda data: data["decoder"].update(layers=4, kv_heads=[1] * 4, head_dim=[16] * 4),
            r"has no input or output 'past_key_values\.3\.key'",
        ),
    ],
)
def test_manifest_of_another_graph(bundle: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
    edit_manifest(bundle, change)
    refused(bundle, rf"model\.onnx: {message}; the manifest and the graph do not belong together")


def test_graph_without_an_input(bundle: Path) -> None:
    def rename(model: onnx.ModelProto) -> None:
        model.graph.input[0].name = "ids"

    edit_graph(bundle, rename)
    refused(bundle, r"model\.onnx: has an input 'ids' that the manifest does not list; the manifest and the graph")


# Golden vectors

Arrays = dict[str, np.ndarray]


def edit_vector(directory: Path, change: Callable[[Arrays], object]) -> None:
    path = next((directory / "vectors").iterdir())
    arrays = load_file(path)
    change(arrays)
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)

    def relist(data: dict[str, Any]) -> None:
        info = next(f for f in data["files"] if f["path"] == f"vectors/{path.name}")
        info.update(bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    edit_manifest(directory, relist)


def first(name: str, value: float) -> Callable[[Arrays], object]:
    return lambda arrays: arrays[name].put(0, value)


def cut(name: str) -> Callable[[Arrays], object]:
    return lambda arrays: arrays.update({name: arrays[name][:-1]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            first("compressed.top_indices", 10**6),
            r"compressed\.top_indices goes from \d+ to 1000000, 0 to 258 expected",
        ),
        (first("original.top_indices", -1), r"original\.top_indices goes from -1 to \d+, 0 to 258 expected"),
        (first("input.input_ids", 259), r"input\.input_ids goes from \d+ to 259, 0 to 258 expected"),
        (first("tap_rows", 40), r"tap_rows goes from 5 to 40, 0 to 39 expected"),
        (cut("original.top_indices"), r"original\.top_indices is int32 \[39, 16\], integers \[40, 16\] expected"),
        (cut("compressed.nll"), r"compressed\.nll is float32 \[38\], numbers \[39\] expected"),
        (cut("original.logits"), r"original\.logits is float32 \[8, 259\], numbers \[9, 259\] expected"),
        (lambda a: a.pop("original.logits"), r"no array 'original\.logits', numbers \[9, 259\] expected"),
        (lambda a: a.pop("compressed.logits"), r"compressed\.logits of \[0\] positions, 1 to 40 expected"),
        (lambda a: a.pop("tap_rows"), r"no array 'tap_rows', integers \[rows\] expected"),
        (lambda a: a.update({"input.input_ids": a["input.input_ids"] * 1.0}), r"input\.input_ids is float64 \[1, 40\]"),
        (lambda a: a.update({"input.input_ids": a["input.input_ids"][:, :1]}), "a text of 1 tokens, 2 to"),
        (lambda a: a.update({"tap.layers.0": a["tap.layers.0"][:, :0]}), r"tap\.layers\.0 is float32 \[3, 0\]"),
    ],
)
def test_vector_that_does_not_fit(bundle: Path, change: Callable[[Arrays], object], message: str) -> None:
    edit_vector(bundle, change)
    with pytest.raises(BundleError, match=rf"text\.safetensors: {message}.*; the file is damaged, export again$"):
        verify(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a.pop("input.x"), r"inputs \[\], \['input.x'\] expected; the file is damaged"),
        (lambda a: a.update({"input.z": a["input.x"]}), r"inputs \['input.x', 'input.z'\], \['input.x'\] expected"),
        (
            lambda a: a.update({"input.x": a["input.x"][0]}),
            r"input\.x is float32 \[256\], an array \[batch, 256\] expected",
        ),
        (
            cut("compressed.y"),
            r"compressed\.y is \[3, 256\] in a golden vector, the graph answers \[4, 256\]; the bundle is",
        ),
        (
            lambda a: a.update({"tap.linear": a["tap.linear"][:1], "compressed.y": a["compressed.y"] + 9}),
            r"golden vectors' tap\.linear are not of the size that the graph answers",
        ),
    ],
)
def test_sample_that_does_not_fit(tmp_path: Path, change: Callable[[Arrays], object], message: str) -> None:
    directory = linear_bundle(tmp_path / "b").directory
    edit_vector(directory, change)
    with pytest.raises(BundleError, match=message):
        verify(directory)
