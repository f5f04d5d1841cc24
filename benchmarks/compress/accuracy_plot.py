"""The plot of benchmarks/accuracy.py: loss of accuracy over bytes, one picture for each model, a colour for each way of rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKERS = {"none": "o", "svd": "v", "eora": "^"}
NAMES = {"none": "alone", "svd": "plain decomposition beside it", "eora": "EoRA beside it; large: the higher rank"}
SMALL, LARGE = 35, 80
LEAST = 1e-4


def draw(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """What each row loses, on a logarithmic axis: perplexity above fp32's as a share of it, or 1 - cosine. Lower is better."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = pyplot.subplots(1, len(models), figsize=(8 * len(models), 6), squeeze=False, layout="constrained")
    for axis, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        whole = next((row["perplexity"] for row in own if row["method"] == "fp32"), None)
        names = list(dict.fromkeys(row["method"] for row in own if row["method"] != "fp32"))
        low = min((row["rank"] for row in own if row["rank"]), default=0)
        for row in own:
            if row["method"] == "fp32":
                continue
            size = LARGE if row["rank"] > low else SMALL
            axis.scatter(
                row["bytes"] / 1e6, max(_loss(row, whole), LEAST), size, marker=MARKERS[row["compensation"]],
                color=f"C{names.index(row['method']) % 10}", edgecolors="white", linewidths=0.5,
            )  # fmt: skip
        for index, name in enumerate(names):
            axis.scatter([], [], SMALL, color=f"C{index % 10}", label=name)
        for kind in dict.fromkeys(row["compensation"] for row in own):
            axis.scatter([], [], SMALL, marker=MARKERS[kind], color="black", label=NAMES[kind])
        what = (
            "1 - mean cosine to the float model"
            if own[0]["perplexity"] is None
            else "perplexity above fp32's, as a share"
        )
        axis.set(title=model, xlabel="MB stored", ylabel=f"{what} (lower is better)", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    figure.savefig(target, dpi=90)
    pyplot.close(figure)


def _loss(row: dict[str, Any], whole: float | None) -> float:
    if row["perplexity"] is None:
        return 1.0 - float(row["accuracy"])
    return float(row["perplexity"]) / whole - 1.0 if whole else float(row["perplexity"])
