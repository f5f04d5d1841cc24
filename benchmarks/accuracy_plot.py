"""The plot of benchmarks/accuracy.py: accuracy over bytes, one picture for each model, a colour for each way of rounding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

MARKERS = {"none": "o", "svd": "v", "eora": "^"}


def draw(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """Perplexities on a logarithmic axis (up to 100 times the best), cosines on a linear one; rows of fp32 are level lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = pyplot.subplots(1, len(models), figsize=(8 * len(models), 6), squeeze=False)
    for axis, model in zip(axes[0], models, strict=True):
        own = [row for row in rows if row["model"] == model]
        key = "perplexity" if own[0]["perplexity"] is not None else "accuracy"
        names = list(dict.fromkeys(row["method"] for row in own if row["method"] != "fp32"))
        for row in own:
            if row["method"] == "fp32":
                axis.axhline(row[key], color="grey", ls="--", lw=1, label="fp32")
                continue
            colour = f"C{names.index(row['method']) % 10}"
            label = row["method"] if row["compensation"] == "none" else None
            axis.plot(
                row["bytes"] / 1e6, row[key], MARKERS[row["compensation"]], color=colour, label=label, markersize=6
            )
            if row["compensation"] != "none":
                axis.annotate(f"{row['compensation']} {row['rank']}", (row["bytes"] / 1e6, row[key]), fontsize=6)
        if key == "perplexity":
            best = min(row[key] for row in own)
            axis.set_yscale("log")
            axis.set_ylim(0.95 * best, 100 * best)
        axis.set(
            title=model, xlabel="MB stored", ylabel=key if key == "perplexity" else "mean cosine to the float model"
        )
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
    pyplot.close(figure)
