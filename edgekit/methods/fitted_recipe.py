"""How a bundle stores what compression without training made: a format for each layer, its bytes, and the recipe.

Every weight is on the grid of a format already; here the one is chosen that finds it again bit for bit in the fewest
bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from edgekit.low_rank import branch_names
from edgekit.lowbit.formats import detect_ternary, keeps
from edgekit.lowbit.formats.integers import FLOAT16_MOST
from edgekit.methods.calibrate import blocks_of
from edgekit.methods.eora import block_of
from edgekit.methods.gptq import GROUP_SIZES
from edgekit.recipe import VERSION, Limits, Recipe, Rule
from edgekit.spec.formats import FORMATS

Option = tuple[str, int]
"""Format and block size (0 = the format's own)."""
PARITY = Limits(kl=0.01, sqnr_db=20.0, cosine=0.99, top1=0.99, margin=0.5, perplexity_ratio=1.02)
"""What a bundle must keep of the compressed model: as in the shipped int4 recipe."""


def weight_bytes(layers: Iterable[nn.Module], option: Option | None) -> int:
    """What compressed linear layers take in a bundle, second planes included and low-rank branches not."""
    total = 0
    for layer in layers:
        assert isinstance(layer, nn.Linear)
        rows, columns = layer.weight.shape
        second = getattr(layer, "second", None)
        for part in [layer] if second is None else [layer, second]:
            name, block = option or exact_format(part.weight)
            total += FORMATS[name].nbytes(rows, columns, block)
    return total


def stored_block(shapes: Sequence[tuple[int, int]], group_size: int) -> int:
    """The block size with which int4-fp16 stores layers [N, K] of a GPTQ group size in the fewest bytes, and exactly.

    Blocks may be parts of a group: padding a last half group can cost more than a second scale.
    """
    fitting = [size for size in GROUP_SIZES[1:] if not group_size or group_size % size == 0]
    return min(fitting, key=lambda size: sum(FORMATS["int4-fp16"].nbytes(n, k, size) for n, k in shapes))


def exact_format(weight: Tensor) -> Option:
    """The smallest of t2, int4-fp16, int4 and int8 that keeps a weight [N, K] bit for bit; int8 where none does."""
    array = weight.detach().numpy()
    if detect_ternary(array) is not None:
        return "t2", 0
    names = ("int4-fp16", "int4", "int8") if float(abs(array).max()) <= FLOAT16_MOST else ("int4", "int8")
    options = [(name, block) for name in names for block in GROUP_SIZES[1:]]
    for name, block in sorted(options, key=lambda option: FORMATS[option[0]].nbytes(1, max(GROUP_SIZES), option[1])):
        if keeps(name, block, array):
            return name, block
    return "int8", 0


def _inside(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks and their second planes, without low-rank branches."""
    low_rank = branch_names(model, ("lora_A", "lora_B"))
    return {
        f"{block}.{name}" if block else name: layer
        for block, module in blocks_of(model).items()
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and (f"{block}.{name}" if block else name) not in low_rank
    }


def option_of(model: nn.Module, of: str, group_size: int) -> Option | None:
    """Format and block size of all linear layers of the blocks after a method (int4 and gptq in groups of
    ``group_size``).

    None for "none", where each layer keeps its own.
    """
    if of == "none":
        return None
    if of in ("ternarize", "2:4"):
        return ("t2", 0) if of == "ternarize" else ("int8", 0)
    shapes = [(layer.out_features, layer.in_features) for layer in _inside(model).values()]
    return "int4-fp16", stored_block(shapes, group_size)


def recipe_for(
    model: nn.Module, option: Option | None, name: str, exclude: Sequence[str] = (), branch_format: str = "int8"
) -> Recipe:
    """The recipe that stores a compressed model as it is: the blocks' layers by ``option``, low-rank branches in
    ``branch_format``.

    What stands outside the blocks, and what was left out of them by ``exclude``, is stored at 8 bits.
    """
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    rules: list[Rule] = []
    for part in ("lora_A", "lora_B"):
        branches = [m for n, m in linears.items() if n.endswith(f".{part}")]
        if branches:
            # A group's layers differ in N alone, so that their blocks are the same and they can be merged.
            block = 0 if branch_format == "fp16" else block_of(max(m.in_features for m in branches))
            rules.append(Rule(f"*.{part}", branch_format, block))
    rules += [Rule(pattern, "int8") for pattern in (exclude if option is not None else ())]
    inside = next(iter(blocks_of(model))).rpartition(".")[0]
    pattern = f"{inside}.*" if inside else "*"
    if not inside and any(isinstance(m, nn.Embedding) for m in model.modules()):
        rules.append(Rule("*", "int8", only="vocabulary"))
    rules += _rules(model, option, pattern)
    rules.append(Rule("*", "int8"))
    return Recipe(VERSION, name, tuple(rules), "made by edgekit compress for this model", PARITY)


def _rules(model: nn.Module, option: Option | None, pattern: str) -> list[Rule]:
    """Of the blocks' layers: one for all, or one for each where they differ."""
    options = {name: option or exact_format(layer.weight) for name, layer in _inside(model).items()}
    if len(set(options.values())) == 1:
        options = {pattern: next(iter(options.values()))}
    return [Rule(name, *option, only="ternary" if option[0] == "t2" else "") for name, option in options.items()]
