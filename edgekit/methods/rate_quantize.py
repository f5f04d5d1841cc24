"""Rate-aware quantization: one step for each layer, chosen so that all together cost what a budget allows.

For layer l with weights W [N, K], inputs x and Hessian H = E[x x^T], a step and a dead zone give rounded weights
whose rate R is their entropy and whose distortion D is trace(dW H dW^T) / trace(W H W^T), the noise-to-signal ratio of
the layer's output, times how much of such noise arrives at the model's output, which is measured one layer at a time.
Minimizing the sum of D + lambda R layer by layer is optimal for the whole at the rate that lambda leads to (Shoham and
Gersho, "Efficient bit allocation for an arbitrary set of quantizers", 1988); lambda is found by bisection.

Zeros stay zero. A row's values are whole multiples of its step, at most 127, which int8 formats keep exactly; rows have
the layer's step, doubled where a row's largest weight would be more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from edgekit.errors import CheckFailed, UnsupportedError, UsageError
from edgekit.lowbit.grid import short
from edgekit.methods.rate import counted, entropy
from edgekit.methods.selection import is_conv1d, without
from edgekit.spec.progress import Progress

MOST_CODE = 127
STEPS_AN_OCTAVE = 3
DEAD_ZONES = (0.5, 0.6, 0.7)
"""Magnitudes below so many steps become zero; 0.5 is plain rounding."""
STEP_BITS, COLUMNS_OF_FULL = 32, 4096
ROW_BITS = 3
"""What telling a row's doublings takes at most, in a layer where some are."""
PROBED, PROBE_NOISE = 8, 0.01
"""Examples, and about the noise-to-signal ratio, with which a layer's effect on the output is measured."""
ROUNDS = 40
TRIALS = 14  # each of them an evaluation
MOMENTS = ("full", "diagonal", "none")


@dataclass(frozen=True)
class Budget:
    """One of ``bits`` a weight, ``bytes`` of all weights together (both entropy coded), or ``loss``: how much larger,
    as a share, the loss on held-out examples may become.

    moments: "full" H = E[x x^T] of each layer's input over ``examples`` of the training data (the diagonal where it has
    more than 4096 inputs), "diagonal", or "none" for plain squared error.
    """

    bits: float | None = None
    bytes: int | None = None
    loss: float | None = None
    moments: str = "full"
    examples: int = 256
    exclude: tuple[str, ...] = ()  # globs over the names of modules

    def __post_init__(self) -> None:
        limits = [limit for limit in (self.bits, self.bytes, self.loss) if limit is not None]
        if len(limits) != 1 or not limits[0] > 0:
            raise UsageError(
                f"bits {self.bits}, bytes {self.bytes}, loss {self.loss}: give exactly one of them, above 0"
            )
        if self.moments not in MOMENTS or self.examples < 1:
            raise UsageError(
                f"moments '{self.moments}', examples {self.examples}: give one of {', '.join(MOMENTS)}, and at least 1"
            )


@dataclass(frozen=True)
class Choice:
    """A layer's step and what follows: ``bits`` of all its weights and steps, noise-to-signal ratio, distortion."""

    step: float
    dead_zone: float
    bits: float
    noise: float
    distortion: float


@dataclass(frozen=True)
class Layer:
    """A weight as a matrix [N, K] that multiplies its input from the left, and the Hessian of that input.

    ``hessian`` is [K, K], its diagonal [K], or None for white noise; ``uses`` [N] weighs rows (an embedding's), or is
    None.
    """

    name: str
    parameter: nn.Parameter
    transposed: bool  # stored as [K, N]
    hessian: Tensor | None
    uses: Tensor | None

    @property
    def matrix(self) -> Tensor:
        """float32 [N, K]."""
        weight = self.parameter.detach().flatten(1)
        return weight.t() if self.transposed else weight

    def energy(self, matrix: Tensor) -> float:
        """trace(M H M^T), rows weighed by their use."""
        if self.hessian is None:
            rows = matrix.square().sum(1)
        elif self.hessian.ndim == 1:
            rows = matrix.square() @ self.hessian
        else:
            rows = ((matrix @ self.hessian) * matrix).sum(1)
        return float((rows if self.uses is None else rows * self.uses).sum(dtype=torch.float64))


class RateQuantizer:
    """A model's layers with everything that they could become; weights are changed by :meth:`apply` alone."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Sequence[Mapping[str, Tensor]],
        budget: Budget,
        answer: Callable[[Mapping[str, Tensor]], Tensor] | None = None,
        progress: Progress = lambda what, share: None,
    ) -> None:
        """``inputs`` are batches for ``model(**batch)``; ``answer`` gives what matters of the output for one, to
        measure how much each layer matters. Raises UnsupportedError when there is nothing to quantize.
        """
        progress("Hessians", 0.0)
        self.layers = layers_of(model, inputs, budget)
        self.count = sum(layer.parameter.numel() for layer in self.layers)
        self.originals = [layer.matrix.clone() for layer in self.layers]
        self.choices = []
        for index, layer in enumerate(self.layers):
            progress("steps of each layer", index / len(self.layers))
            self.choices.append(candidates(layer))
        if answer is not None and inputs:
            some = {name: array[:PROBED] for name, array in inputs[0].items()}
            self._weigh(lambda: answer(some), progress)

    def choose(self, lam: float) -> list[Choice]:
        """For each layer what minimizes distortion + ``lam`` times bits a weight of the model."""
        return [min(candidates, key=lambda c: c.distortion + lam * c.bits / self.count) for candidates in self.choices]

    def bits(self, chosen: Sequence[Choice]) -> float:
        """Bits of all weights together."""
        return sum(choice.bits for choice in chosen)

    def within_bits(self, limit: float) -> list[Choice]:
        """The least distortion with ``limit`` bits at most. Raises UsageError when the coarsest steps take more."""
        least = self.bits(self.choose(1e12))
        if least > limit:
            raise UsageError(
                f"budget: {limit / self.count:.3f} bits a weight; the coarsest steps take {least / self.count:.3f}; "
                "allow more"
            )
        fits = self._bisected(1e12, 1e-12, ROUNDS, self.choose(1e12), lambda chosen: self.bits(chosen) <= limit)
        return self._filled(fits, limit)

    def within_loss(self, evaluate: Callable[[], float], limit: float) -> list[Choice]:
        """The fewest bits with which ``evaluate()`` (the model's loss as it is then) is ``limit`` at most.

        The weights are the original ones afterwards. Raises CheckFailed when even the finest steps lose more.
        """

        def good(chosen: Sequence[Choice]) -> bool:
            self.apply(chosen)
            loss = evaluate()
            return math.isfinite(loss) and loss <= limit

        try:
            if not good(self.choose(0.0)):
                raise CheckFailed(f"budget: the finest steps (int8) already exceed a loss of {limit:.4f}; allow more")
            return self._bisected(1e-7, 1e3, TRIALS, self.choose(0.0), good)
        finally:
            self.restore()

    @torch.no_grad()
    def apply(self, chosen: Sequence[Choice]) -> None:
        """Puts the rounded weights into the model."""
        for layer, original, choice in zip(self.layers, self.originals, chosen, strict=True):
            self._put(layer, quantized(original, choice.step, choice.dead_zone))

    @torch.no_grad()
    def restore(self) -> None:
        """Puts the original weights back."""
        for layer, original in zip(self.layers, self.originals, strict=True):
            self._put(layer, original)

    @torch.no_grad()
    def _weigh(self, answer: Callable[[], Tensor], progress: Progress) -> None:
        """Multiplies each layer's distortions by the share of the output's energy that a unit of its noise changes."""
        wanted = answer().float()
        for index, (layer, original) in enumerate(zip(self.layers, self.originals, strict=True)):
            progress("how much each layer matters", index / len(self.layers))
            probe = min(self.choices[index], key=lambda c: abs(math.log(max(c.noise, 1e-30) / PROBE_NOISE)))
            self._put(layer, quantized(original, probe.step, probe.dead_zone))
            error = (answer().float() - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)
            self._put(layer, original)
            weight = float(error) / max(probe.noise, 1e-30)
            self.choices[index] = [replace(c, distortion=c.noise * weight) for c in self.choices[index]]

    def _put(self, layer: Layer, matrix: Tensor) -> None:
        layer.parameter.copy_((matrix.t() if layer.transposed else matrix).reshape(layer.parameter.shape))

    def _filled(self, chosen: list[Choice], limit: float) -> list[Choice]:
        """What bisection leaves over, spent where it lowers distortion most for each bit."""
        while True:
            remaining = limit - self.bits(chosen)
            gains = [
                ((now.distortion - c.distortion) / (c.bits - now.bits), index, c)
                for index, (now, candidates) in enumerate(zip(chosen, self.choices, strict=True))
                for c in candidates
                if c.distortion < now.distortion and 0 < c.bits - now.bits <= remaining
            ]
            if not gains:
                return chosen
            _, index, best = max(gains, key=lambda gain: gain[0])
            chosen = [*chosen[:index], best, *chosen[index + 1 :]]

    def _bisected(
        self, good: float, bad: float, rounds: int, best: list[Choice], fits: Callable[[list[Choice]], bool]
    ) -> list[Choice]:
        """By bisection the choice of the lambda next to ``bad`` that still fits; ``best`` where none between does."""
        for _ in range(rounds):
            middle = math.sqrt(good * bad)
            chosen = self.choose(middle)
            if fits(chosen):
                good, best = middle, chosen
            else:
                bad = middle
        return best


def row_steps(matrix: Tensor, step: float) -> Tensor:
    """``step`` for each row [N, 1], doubled until the row's largest magnitude is 127 of them at most."""
    doublings = (matrix.abs().amax(1, keepdim=True) / (step * (MOST_CODE + 0.49))).clamp_min(1.0).log2().ceil()
    return step * 2.0**doublings


def codes_of(matrix: Tensor, steps: Tensor | float, dead_zone: float) -> Tensor:
    """Whole numbers as float32: nearest multiples of ``steps``, zero below ``dead_zone`` of them."""
    scaled = matrix / steps
    return torch.where(scaled.abs() < dead_zone, 0.0, scaled.round()).clamp_(-MOST_CODE, MOST_CODE)


def quantized(matrix: Tensor, step: float, dead_zone: float) -> Tensor:
    """The rounded matrix [N, K] for a layer's step."""
    steps = row_steps(matrix, step)
    return codes_of(matrix, steps, dead_zone) * steps


def candidates(layer: Layer) -> list[Choice]:
    """Steps from half of what int8 takes for the middle row to the largest magnitude of all, with each dead zone."""
    matrix = layer.matrix
    rows = matrix.abs().amax(1)
    largest, signal = float(rows.max()), layer.energy(matrix)
    if largest == 0 or signal <= 0:
        return [_choice(layer, matrix, short(largest / MOST_CODE) if largest else 1.0, 0.5, max(signal, 1e-30))]
    smallest = float(rows[rows > 0].median()) / MOST_CODE / 2
    count = math.ceil(math.log2(largest / smallest) * STEPS_AN_OCTAVE)
    steps = [short(smallest * 2 ** (i / STEPS_AN_OCTAVE)) for i in range(count + 1)]
    return [_choice(layer, matrix, step, zone, signal) for step in steps for zone in DEAD_ZONES]


def _choice(layer: Layer, matrix: Tensor, step: float, zone: float, signal: float) -> Choice:
    steps = row_steps(matrix, step)
    codes = codes_of(matrix, steps, zone)
    bits = entropy(counted(codes.flatten().to(torch.int32).numpy())) * codes.numel() + STEP_BITS
    bits += ROW_BITS * len(matrix) * bool((steps != step).any())
    noise = layer.energy(codes * steps - matrix) / signal
    return Choice(step, zone, bits, noise, noise)


def layers_of(model: nn.Module, inputs: Iterable[Mapping[str, Tensor]], budget: Budget) -> list[Layer]:
    """The linear, convolution and embedding layers of a model, each weight once, a linear layer's use of it first.

    Raises UnsupportedError when there is none, UsageError for a pattern that fits none.
    """
    modules = {
        n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Embedding | nn.Conv2d) or is_conv1d(m)
    }
    modules = {name: modules[name] for name in without(modules, budget.exclude, "layer")}
    if not modules:
        raise UnsupportedError("model: no linear, convolution or embedding layer; nothing to quantize")
    once: dict[int, str] = {}
    for name in sorted(modules, key=lambda n: isinstance(modules[n], nn.Embedding)):
        once.setdefault(id(modules[name].weight), name)
    chosen = {name: modules[name] for name in modules if name in once.values()}
    hessians = _hessians(model, chosen, inputs, budget.moments)
    layers = []
    for name, module in chosen.items():
        table, sums = isinstance(module, nn.Embedding), hessians.get(name)
        hessian, uses = (None, sums) if table else (sums, None)
        layers.append(Layer(name, module.weight, is_conv1d(module), hessian, uses))
    return layers


@torch.no_grad()
def _hessians(
    model: nn.Module, modules: Mapping[str, Any], inputs: Iterable[Mapping[str, Tensor]], kind: str
) -> dict[str, Tensor]:
    """E[x x^T] (or its diagonal) of what goes into each layer; for embeddings how often each row is used."""
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(name: str, module: Any, x: Tensor) -> None:
        if isinstance(module, nn.Embedding):
            products, rows = torch.bincount(x.flatten(), minlength=module.num_embeddings).float(), x.numel()
        else:
            columns = _columns(module, x)
            full, rows = kind == "full" and columns.shape[1] <= COLUMNS_OF_FULL, len(columns)
            products = columns.t() @ columns if full else columns.square().sum(0)
        sums[name] = sums[name] + products if name in sums else products
        counts[name] = counts.get(name, 0) + rows

    if kind == "none":
        return {}
    with _listening(modules, add):
        for batch in inputs:
            model(**batch)
    return {name: total / max(1, counts[name]) for name, total in sums.items()}


@contextmanager
def _listening(modules: Mapping[str, Any], add: Callable[[str, Any, Tensor], None]) -> Iterator[None]:
    handles = [
        module.register_forward_pre_hook(lambda layer, given, name=name: add(name, layer, given[0]))
        for name, module in modules.items()
        if not (isinstance(module, nn.Conv2d) and module.groups > 1)  # each group has an input of its own: white noise
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _columns(module: Any, x: Tensor) -> Tensor:
    """What a layer multiplies, float32 [positions, K]."""
    if isinstance(module, nn.Conv2d):
        padding: Any = module.padding if module.padding != "same" else [(k - 1) // 2 for k in module.kernel_size]
        unfolded = functional.unfold(
            x.float(), module.kernel_size, module.dilation, 0 if padding == "valid" else padding, module.stride
        )
        return unfolded.transpose(1, 2).flatten(0, 1)
    return x.float().flatten(0, -2)


def chosen_report(layers: Sequence[Layer], chosen: Sequence[Choice]) -> list[dict[str, float | str]]:
    """A row for each layer, for compress.json."""
    return [
        {
            "layer": layer.name,
            "step": choice.step,
            "dead_zone": choice.dead_zone,
            "bits": choice.bits / layer.parameter.numel(),
            "noise_db": 10 * math.log10(max(choice.noise, 1e-30)),
            "zeros": float((layer.parameter == 0).float().mean()),
        }
        for layer, choice in zip(layers, chosen, strict=True)
    ]
