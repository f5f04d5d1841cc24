"""Reshapes and transposes that are put off until a value is really read.

PyTorch code splits heads, transposes, and undoes both around attention. Kept pending on the value, such a chain cancels
by itself and no node is written for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx_ir as ir
import sympy

Dim: TypeAlias = "int | sympy.Expr"
Shape: TypeAlias = tuple[Dim, ...]
Step: TypeAlias = tuple[str, tuple[Dim, ...]]
"""("reshape", new shape) or ("transpose", permutation)."""


def apply(shape: Shape, step: Step) -> Shape:
    """The shape after one step."""
    kind, argument = step
    return argument if kind == "reshape" else tuple(shape[int(i)] for i in argument)


@dataclass(frozen=True)
class View:
    """``value`` seen through pending steps; ``base_shape`` is the shape of ``value`` itself."""

    value: ir.Value
    base_shape: Shape
    steps: tuple[Step, ...] = ()

    @property
    def shape(self) -> Shape:
        return self._after(len(self.steps))

    def _after(self, count: int) -> Shape:
        shape = self.base_shape
        for step in self.steps[:count]:
            shape = apply(shape, step)
        return shape

    def reshape(self, shape: Sequence[Dim]) -> View:
        """Pending reshape; merges with one just before it and disappears when it changes nothing."""
        steps = self.steps[:-1] if self.steps and self.steps[-1][0] == "reshape" else self.steps
        kept = View(self.value, self.base_shape, steps)
        if kept.shape == tuple(shape):
            return kept
        return View(self.value, self.base_shape, (*steps, ("reshape", tuple(shape))))

    def transpose(self, permutation: Sequence[int]) -> View:
        """Pending transpose; merges with one just before it and disappears when it is the identity."""
        steps, order = self.steps, list(permutation)
        if steps and steps[-1][0] == "transpose":
            order = [int(steps[-1][1][i]) for i in permutation]
            steps = steps[:-1]
        if order == list(range(len(order))):
            return View(self.value, self.base_shape, steps)
        return View(self.value, self.base_shape, (*steps, ("transpose", tuple(order))))

    def before_transpose(self) -> tuple[View, tuple[int, ...]]:
        """The view without its last transpose when that keeps the last axis in place, and that transpose (or ())."""
        if self.steps and self.steps[-1][0] == "transpose":
            order = tuple(int(i) for i in self.steps[-1][1])
            if order[-1] == len(order) - 1:
                return View(self.value, self.base_shape, self.steps[:-1]), order
        return self, ()
