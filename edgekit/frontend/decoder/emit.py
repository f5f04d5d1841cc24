"""Writes ONNX nodes for a traced decoder: values, constants, shapes. What a torch operator becomes is in ``aten``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import sympy
import torch

from edgekit.errors import UnsupportedError
from edgekit.frontend.decoder.pending_views import Shape, View, apply
from edgekit.lowbit.initializers import WeightTensor
from edgekit.lowbit.weights import RowWeight

INT64_MAX = 2**63 - 1


@dataclass(frozen=True)
class Constant:
    """A parameter, buffer or anything computed from them alone; read only when the file is written."""

    tensor: torch.Tensor
    name: str


def onnx_type(dtype: torch.dtype) -> ir.DataType:
    """Floating types all become float32: precision is chosen later, layer by layer."""
    if dtype.is_floating_point:
        return ir.DataType.FLOAT
    return {torch.int64: ir.DataType.INT64, torch.int32: ir.DataType.INT32, torch.bool: ir.DataType.BOOL}[dtype]


def shape_of(tensor: torch.Tensor) -> Shape:
    """The shape with symbolic sizes as sympy expressions."""
    return tuple(int(d) if isinstance(d, int) else d.node.expr for d in tensor.shape)


@dataclass
class Emitter:
    """The ONNX graph under construction."""

    sizes: dict[sympy.Expr, tuple[str, int]]  # symbolic size -> graph input and axis it is read from
    streams: dict[int, RowWeight] = field(default_factory=dict)  # address of a placeholder -> the weight it stands for
    inputs: dict[str, ir.Value] = field(default_factory=dict)
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    taps: dict[str, ir.Value] = field(default_factory=dict)
    _dims: dict[sympy.Expr, ir.Value] = field(default_factory=dict)
    _seen: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)
    _names: dict[str, int] = field(default_factory=dict)
    scope: str = ""  # module path of the torch node being translated

    def name(self, stem: str) -> str:
        """A name not given before."""
        count = self._names.get(stem, 0)
        self._names[stem] = count + 1
        return f"{stem}_{count}" if count else stem

    def node(
        self, op: str, inputs: Sequence[ir.Value | None], attributes: dict[str, Any] | None = None, *,
        domain: str = "", outputs: int = 1, dtype: ir.DataType = ir.DataType.FLOAT,
    ) -> list[ir.Value]:  # fmt: skip
        """Appends one node and returns its outputs."""
        stem = f"{self.scope}.{op}" if self.scope else op
        name = self.name(stem)
        results = [ir.Value(name=f"{name}:{i}" if i else name, type=ir.TensorType(dtype)) for i in range(outputs)]
        attrs = [ir.convenience.convert_attribute(key, value) for key, value in (attributes or {}).items()]
        self.nodes.append(ir.Node(domain, op, inputs, attrs, outputs=results, name=f"node:{name}"))
        return results

    def one(
        self, op: str, *inputs: ir.Value | None, domain: str = "", dtype: ir.DataType = ir.DataType.FLOAT, **attributes: Any
    ) -> ir.Value:  # fmt: skip
        """Appends a node with one output and returns it."""
        return self.node(op, inputs, attributes, domain=domain, dtype=dtype)[0]

    def weight(self, constant: Constant) -> ir.Value:
        """The initializer that holds a constant; one for each storage, so tied weights are stored once."""
        tensor = constant.tensor
        key = ("weight", tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key not in self._seen or tensor.numel() == 0:
            dtype, name = onnx_type(tensor.dtype), self.name(constant.name)

            def read(dtype: ir.DataType = dtype) -> ir.TensorProtocol:
                wide = torch.float32 if dtype == ir.DataType.FLOAT else tensor.dtype
                return ir.tensor(self.values(constant).to(wide).contiguous().numpy())

            stream = self.streams.get(tensor.data_ptr())
            if stream is not None and stream.shape == tuple(tensor.shape):
                lazy: ir.LazyTensor = WeightTensor(stream, name)
            else:
                lazy = ir.LazyTensor(read, dtype=dtype, shape=ir.Shape(tensor.shape), name=name)
            value = ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(tensor.shape), const_value=lazy)
            self.initializers[name] = self._seen[key] = value
        return self._seen[key]

    def values(self, constant: Constant) -> torch.Tensor:
        """What a constant holds; a streamed weight is read whole."""
        stream = self.streams.get(constant.tensor.data_ptr())
        return constant.tensor.detach() if stream is None else torch.from_numpy(stream[:])

    def small(self, data: Any, dtype: Any = np.int64) -> ir.Value:
        """A small constant given as numbers; equal ones are shared."""
        array = np.asarray(data, dtype=dtype)
        key = ("small", array.tobytes(), array.shape, array.dtype.str)
        if key not in self._seen:
            name = self.name("constant")
            tensor = ir.tensor(array, name=name)
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            value = ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
            self.initializers[name] = self._seen[key] = value
        return self._seen[key]

    def size(self, expression: sympy.Expr) -> ir.Value:
        """A symbolic size as an int64 [1] value, read from a graph input at run time."""
        if expression not in self._dims:
            if expression in self.sizes:
                source, axis = self.sizes[expression]
                size = self.one("Shape", self.inputs[source], dtype=ir.DataType.INT64, start=axis, end=axis + 1)
            elif isinstance(expression, sympy.Add | sympy.Mul):
                op = "Add" if isinstance(expression, sympy.Add) else "Mul"
                parts = [self.small([int(a)]) if a.is_Integer else self.size(a) for a in expression.args]
                size = parts[0]
                for part in parts[1:]:
                    size = self.one(op, size, part, dtype=ir.DataType.INT64)
            else:
                raise UnsupportedError(
                    f"{self.scope}: the size {expression} cannot be computed from the inputs' shapes"
                )
            self._dims[expression] = size
        return self._dims[expression]

    def shape_value(self, shape: Shape, given: Shape) -> ir.Value:
        """The second input of a Reshape from ``given`` to ``shape``: constant wherever 0 and one -1 can say it."""
        wanted: list[int | None] = []
        for axis, dim in enumerate(shape):
            if isinstance(dim, int):
                wanted.append(dim)
            else:
                wanted.append(0 if axis < len(given) and given[axis] == dim else None)
        if wanted.count(None) <= 1:
            return self.small([-1 if w is None else w for w in wanted])
        return self.vector(shape)

    def vector(self, sizes: Shape) -> ir.Value:
        """Sizes, symbolic ones too, as an int64 vector."""
        parts = [self.small([d]) if isinstance(d, int) else self.size(d) for d in sizes]
        return self.one("Concat", *parts, dtype=ir.DataType.INT64, axis=0)

    def read(self, view: View) -> ir.Value:
        """Writes the pending steps of a view (once) and returns the value to use."""
        value, shape = view.value, view.base_shape
        for count, step in enumerate(view.steps, start=1):
            key = ("view", id(view.value), view.steps[:count])
            if key not in self._seen:
                kind, argument = step
                dtype = value.dtype or ir.DataType.FLOAT
                if kind == "reshape":
                    self._seen[key] = self.one("Reshape", value, self.shape_value(argument, shape), dtype=dtype)
                else:
                    self._seen[key] = self.one("Transpose", value, dtype=dtype, perm=[int(i) for i in argument])
            value, shape = self._seen[key], apply(shape, step)
        return value


Handler = Callable[[Emitter, torch.fx.Node, list[Any]], Any]


def scalar(emitter: Emitter, number: float, like: ir.DataType) -> ir.Value:
    """A Python number as a 0-d constant of the other operand's type."""
    return emitter.small(number, np.float32 if like == ir.DataType.FLOAT else np.int64)
