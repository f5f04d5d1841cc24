"""The plot of benchmarks/sparse.py: time over the share of zeros, dense products as level lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

NAMES = {
    "DynamicQuantizeLinear+MatMulInteger": "ONNX Runtime int8",
    "MatMulNBits-4": "MatMulNBits, 4 bits",
    "MatMulNBits-8": "MatMulNBits, 8 bits",
    "int8": "Int8MatMul",
    "ternary": "TernaryMatMul",
}


def draw(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """A picture for each shape, M, thread count and place of the weights, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["shape"], row["M"], row["threads"], row["weights"]), []).append(row)
    figure, axes = pyplot.subplots(-(-len(cells) // 2), 2, figsize=(12, 4.2 * -(-len(cells) // 2)), squeeze=False)
    for axis in axes.ravel()[len(cells) :]:
        axis.axis("off")
    for axis, ((shape, m, threads, weights), found) in zip(axes.ravel(), cells.items(), strict=False):
        for index, name in enumerate(dict.fromkeys(row["impl"] for row in found)):
            own = sorted((row["zeros"], row["median_us"], row["spread_us"]) for row in found if row["impl"] == name)
            if name.startswith("sparse"):
                zeros, times, spreads = zip(*own, strict=True)
                axis.errorbar(zeros, times, spreads, label=name, color=f"C{index}", marker="o", markersize=3, capsize=2)
            else:
                axis.axhline(
                    median(time for _, time, _ in own), label=NAMES.get(name, name), color=f"C{index}", ls="--", lw=1
                )
        axis.set(title=f"{shape}, M = {m}, {threads} thread(s), weights in {weights}", xlabel="zeros, %", ylabel="us")
        axis.set_ylim(bottom=0)
    names, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(names, labels, fontsize=8, ncols=5, loc="lower center")
    figure.tight_layout(rect=(0, 0.09, 1, 1))
    figure.savefig(target, dpi=110)
