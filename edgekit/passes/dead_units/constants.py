"""What elementwise operators make of a channel that is the same number everywhere; NaN stands for one that varies."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgekit.spec.names import MICROSOFT

Floats = NDArray[np.float64]
Function = Callable[[Floats], Floats]


def number(node: ir.Node, name: str, default: float) -> float:
    """A numeric attribute, or what ONNX takes without it."""
    return float(node.attributes[name].value) if name in node.attributes else default


def whole(node: ir.Node, name: str, default: int) -> int:
    """A whole number given as an attribute, or what ONNX takes without it."""
    return int(number(node, name, default))


def text(node: ir.Node, name: str, default: str) -> str:
    """A string attribute, or what ONNX takes without it."""
    return node.attributes[name].as_string() if name in node.attributes else default


def is_padded(node: ir.Node) -> bool:
    """Whether a convolution or pooling pads its input."""
    pads = node.attributes["pads"].as_ints() if "pads" in node.attributes else ()
    return any(pads) or text(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _sigmoid(x: Floats) -> Floats:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * x)))


def _erf(x: Floats) -> Floats:
    return np.array([math.erf(v) for v in x], np.float64)


def _gelu(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + _erf(x / math.sqrt(2))))


def _tanh_gelu(x: Floats) -> Floats:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def _hard_sigmoid(x: Floats, alpha: float, beta: float) -> Floats:
    return np.clip(alpha * x + beta, 0, 1)


def _cast(node: ir.Node) -> Function:
    same = node.attributes["to"].as_int() == ir.DataType.FLOAT.value
    return (lambda x: x) if same else (lambda x: np.full_like(x, np.nan))


Maker = Callable[[ir.Node], Function]
_PLAIN: dict[str, Function] = {
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": _sigmoid,
    "Tanh": np.tanh,
    "Erf": _erf,
    "Exp": np.exp,
    "Log": np.log,
    "Sqrt": np.sqrt,
    "Abs": np.abs,
    "Neg": np.negative,
    "Reciprocal": lambda x: 1 / x,
    "Round": np.round,
    "Floor": np.floor,
    "Ceil": np.ceil,
    "Sin": np.sin,
    "Cos": np.cos,
    "Softplus": lambda x: np.logaddexp(x, 0),
    "Softsign": lambda x: x / (1 + np.abs(x)),
    "HardSwish": lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5),
    "Mish": lambda x: x * np.tanh(np.logaddexp(x, 0)),
    "Identity": lambda x: x,
    "Dropout": lambda x: x,
    "IsNaN": lambda x: np.full_like(x, np.nan),
    "Not": lambda x: np.full_like(x, np.nan),
}
UNARY: dict[tuple[str, str], Maker] = {
    **{("", name): (lambda node, f=f: f) for name, f in _PLAIN.items()},  # type: ignore[misc]
    ("", "Gelu"): lambda node: _tanh_gelu if text(node, "approximate", "none") == "tanh" else _gelu,
    (MICROSOFT, "Gelu"): lambda node: _gelu,
    (MICROSOFT, "FastGelu"): lambda node: _tanh_gelu,
    (MICROSOFT, "QuickGelu"): lambda node: lambda x: x * _sigmoid(number(node, "alpha", 1.702) * x),
    ("", "Swish"): lambda node: lambda x: x * _sigmoid(number(node, "alpha", 1.0) * x),
    ("", "LeakyRelu"): lambda node: lambda x: np.where(x < 0, number(node, "alpha", 0.01) * x, x),
    ("", "Elu"): lambda node: lambda x: np.where(x < 0, number(node, "alpha", 1.0) * np.expm1(x), x),
    ("", "HardSigmoid"): lambda node: lambda x: _hard_sigmoid(x, number(node, "alpha", 0.2), number(node, "beta", 0.5)),
    ("", "Cast"): _cast,
}
BINARY: dict[tuple[str, str], Callable[[Floats, Floats], Floats]] = {
    ("", "Add"): np.add,
    ("", "Sub"): np.subtract,
    ("", "Mul"): lambda a, b: np.where((a == 0) | (b == 0), 0.0, a * b),  # zero times what varies is zero
    ("", "Div"): np.divide,
    ("", "Pow"): np.power,
    ("", "Max"): np.maximum,
    ("", "Min"): np.minimum,
    ("", "PRelu"): lambda a, b: np.where(a < 0, a * b, a),
}


def applied(function: Callable[..., Floats], *operands: Floats) -> Floats:
    """``function`` of float64 [C] each; what is no finite number afterwards counts as varying."""
    with np.errstate(all="ignore"):
        values = np.array(function(*operands), np.float64)
    values[~np.isfinite(values)] = np.nan
    return values
