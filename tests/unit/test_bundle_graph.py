"""Writing graphs: every byte where the graph says, shared tensors once, one tensor in memory at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgekit.bundle import write_graph
from edgekit.bundle.tensors import Stored, initializers, read_graph
from edgekit.errors import CheckFailed
from edgekit.spec.names import DATA, GRAPH

FLOAT = ir.DataType.FLOAT


def model_of(tensors: dict[str, ir.TensorProtocol]) -> ir.Model:
    """A graph that returns the sizes of its initializers, so that none is unused."""
    values = [
        ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor)
        for name, tensor in tensors.items()
    ]
    nodes = [ir.Node("", "Shape", [value], name=f"shape_{value.name}") for value in values]
    for node in nodes:
        node.outputs[0].name = f"{node.name}_out"
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape([None])
    outputs = [node.outputs[0] for node in nodes]
    return ir.Model(
        ir.Graph([], outputs, nodes=nodes, initializers=values, opset_imports={"": 21}, name="g"), ir_version=10
    )


def lazy(array: np.ndarray, calls: list[str], name: str) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        calls.append(name)
        return ir.tensor(array)

    return ir.LazyTensor(read, dtype=ir.tensor(array).dtype, shape=ir.Shape(array.shape), cache=False)


def stored(directory: Path) -> dict[str, Stored | np.ndarray]:
    return initializers(read_graph(directory / GRAPH), directory / GRAPH, {DATA: (directory / DATA).stat().st_size})


def test_offsets_are_pages_and_bytes_are_the_tensors(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray] = {
        "a": np.arange(1000, dtype=np.float32).reshape(10, 100),
        "b": np.arange(5000, dtype=np.uint8),
        "half": np.linspace(-1, 1, 600).astype(np.float16),
        "brain": np.linspace(-1, 1, 600).astype(ml_dtypes.bfloat16),
        "turned": np.arange(2000, dtype=np.int64).reshape(40, 50).T,
        "small": np.arange(4, dtype=np.float32),
    }
    model = model_of({name: ir.tensor(np.ascontiguousarray(a) if a.ndim < 2 else a) for name, a in arrays.items()})
    write_graph(model, tmp_path)
    found = stored(tmp_path)
    data = (tmp_path / DATA).read_bytes()
    for name, array in arrays.items():
        place = found[name]
        if name == "small":
            np.testing.assert_array_equal(place, array)
            continue
        assert isinstance(place, Stored)
        assert place.offset % 4096 == 0
        assert data[place.offset : place.offset + place.length] == np.ascontiguousarray(array).tobytes()
        assert place.shape == array.shape
    onnx.checker.check_model(str(tmp_path / GRAPH))


def test_elements_of_less_than_a_byte_are_packed(tmp_path: Path) -> None:
    array = (np.arange(4000) % 16).astype(ml_dtypes.uint4)
    write_graph(model_of({"w": ir.Tensor(array, dtype=ir.DataType.UINT4)}), tmp_path)
    place = stored(tmp_path)["w"]
    assert isinstance(place, Stored)
    assert place.length == 2000
    assert (tmp_path / DATA).read_bytes()[place.offset :][:2] == bytes([0x10, 0x32])
    assert place.shape == (2000,)


def test_lazy_tensors_are_read_once_and_shared_ones_written_once(tmp_path: Path) -> None:
    calls: list[str] = []
    shared = lazy(np.ones((64, 64), np.float32), calls, "shared")
    one, two = (lazy(np.arange(4096, dtype=np.uint8).reshape(shape), calls, "view") for shape in ((64, 64), (32, 128)))
    one.meta["edgekit.storage"] = two.meta["edgekit.storage"] = "table"
    other = lazy(np.zeros(2048, np.float32), calls, "other")
    model = model_of({"embed": shared, "head": shared, "table": one, "matrix": two, "other": other})
    steps: list[tuple[str, float]] = []
    write_graph(model, tmp_path, lambda what, share: steps.append((what, share)))
    found = stored(tmp_path)
    assert calls == ["shared", "view", "other"]
    assert found["embed"] == found["head"]
    assert isinstance(found["table"], Stored)
    assert isinstance(found["matrix"], Stored)
    assert found["table"].offset == found["matrix"].offset
    assert (found["table"].shape, found["matrix"].shape) == ((64, 64), (32, 128))
    assert [what.partition(": ")[2] for what, _ in steps] == ["embed", "table", "other"]
    assert steps[0][0].startswith("write 0 of 0 MB")
    assert steps[-1][1] == 1.0


def test_one_tensor_in_memory_at_a_time(tmp_path: Path) -> None:
    alive = 0
    most = 0

    class Array(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.base is None

    def read() -> ir.TensorProtocol:
        nonlocal alive, most
        array = np.ndarray.__new__(Array, (1024, 256), np.float32)
        array[:] = 1
        alive += 1
        most = max(most, alive)
        return ir.tensor(array)

    tensors = {f"w{i}": ir.LazyTensor(read, dtype=FLOAT, shape=ir.Shape([1024, 256]), cache=False) for i in range(5)}
    write_graph(model_of(dict(tensors)), tmp_path)
    assert most <= 2  # the next one is made while the last one's name still stands
    assert alive == 0


def test_subgraph_weights_go_outside_too(tmp_path: Path) -> None:
    weight = ir.Value(name="w", const_value=ir.tensor(np.ones(1000, np.float32), name="w"))
    node = ir.Node("", "Identity", [weight])
    node.outputs[0].name = "inner"
    inner = ir.Graph([], [node.outputs[0]], nodes=[node], initializers=[weight], name="branch")
    condition = ir.Value(name="c", const_value=ir.tensor(np.array(True), name="c"))
    outer = ir.Node("", "If", [condition], [ir.AttrGraph("then_branch", inner)])
    outer.outputs[0].name = "y"
    graph = ir.Graph([], [outer.outputs[0]], nodes=[outer], initializers=[condition], opset_imports={"": 21}, name="g")
    write_graph(ir.Model(graph, ir_version=10), tmp_path)
    assert (tmp_path / DATA).stat().st_size == 4000
    assert (tmp_path / GRAPH).stat().st_size < 1000
    stored(tmp_path)


def test_paths_of_the_exporting_machine_are_not_written(tmp_path: Path) -> None:
    model = model_of({"a": ir.tensor(np.ones(4, np.float32))})
    (node,) = model.graph
    node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "private/folder/model.py", line 1'
    node.metadata_props["edgekit.layer"] = "kept"
    write_graph(model, tmp_path)
    data = (tmp_path / GRAPH).read_bytes()
    assert b"private/folder" not in data
    assert b"kept" in data


def test_tensor_that_is_not_what_it_says(tmp_path: Path) -> None:
    wrong = ir.LazyTensor(
        lambda: ir.tensor(np.ones(999, np.float32)), dtype=FLOAT, shape=ir.Shape([1000]), cache=False, name="w"
    )
    with pytest.raises(ValueError, match=r"^w: 3996 bytes came, 4000 are its shape's$"):
        write_graph(model_of({"w": wrong}), tmp_path)


def test_no_room_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "bundle"
    target.mkdir()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 5, 5))
    with pytest.raises(CheckFailed) as failure:
        write_graph(model_of({"w": ir.tensor(np.ones(1000, np.float32))}), target)
    assert str(failure.value) == (
        f"{tmp_path}: 67,112,960 bytes needed for the bundle, 5 free; make room or give another -o"
    )
    assert failure.value.exit_code == 1
    assert not list(target.iterdir())
