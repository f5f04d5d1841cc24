"""The methods of ``edgekit compress``, one row each."""

from __future__ import annotations

from dataclasses import dataclass

TRAINING, TAUGHT, POST_TRAINING, SEARCH = "training", "taught", "post-training", "search"
"""Kinds: trained on the data; trained with a teacher's answers too; rounded layer by layer on a few examples; chosen
within a budget. The first three can be resumed."""


@dataclass(frozen=True)
class CompressMethod:
    """``section`` is the key of its settings in the configuration; ``example`` what must stand there, if anything."""

    name: str
    kind: str
    section: str
    example: str
    help: str


METHODS = (
    CompressMethod("backslash", TRAINING, "rate", "", "train with a term for what weights cost to store"),
    CompressMethod("prune", TRAINING, "prune", "", "train while the smallest weights become zero"),
    CompressMethod("2:4", TRAINING, "prune", "", "two of four neighbouring weights become zero"),
    CompressMethod("bitnet", TRAINING, "bitnet", "", "train with ternary weights and int8 activations"),
    CompressMethod("salt", TAUGHT, "salt", "{teacher: MODEL, steps: 200}", "a small teacher helps in the first steps"),
    CompressMethod("distill", TAUGHT, "distill", "{teacher: MODEL}", "learn from a teacher's probabilities too"),
    CompressMethod("recover", TAUGHT, "recover", "", "round, then learn to answer as before with simulated weights"),
    CompressMethod("rate-quantize", SEARCH, "quantize", "{bits: 3} or {loss: 0.01}", "a step for each layer, for a budget"),
    CompressMethod("gptq", POST_TRAINING, "gptq", "", "3 or 4 bits, each column making up for those before"),
    CompressMethod("ternarize", POST_TRAINING, "ternarize", "", "one or two ternary planes"),
    CompressMethod("eora", POST_TRAINING, "eora", "{of: gptq, rank: 32}", "rounding with a low-rank branch for its error"),
    CompressMethod("lora", POST_TRAINING, "lora", "{adapter: DIRECTORY}", "a PEFT adapter, merged or as a branch"),
    CompressMethod("sensitivity", SEARCH, "sensitivity", "{bits: 5}", "a format for each layer, for a budget"),
    CompressMethod("none", TRAINING, "", "", "train without any of them, as a baseline"),
)  # fmt: skip
BY_NAME = {method.name: method for method in METHODS}
