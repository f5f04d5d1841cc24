"""The plot of benchmarks/backslash.py: score over pruning, and score over bits a weight."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def draw(rows: Sequence[dict[str, Any]], target: Path) -> None:
    """One row of two pictures for each model, as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    figure, axes = pyplot.subplots(len(models), 2, figsize=(12, 4 * len(models)), squeeze=False)
    for (left, right), model in zip(axes, models, strict=True):
        best = 0.0
        for index, row in enumerate(r for r in rows if r["model"] == model):
            style = {"label": row["method"], "color": pyplot.get_cmap("tab20")(index), "marker": "o", "markersize": 3}
            shares = [100 * float(share) for share in row["pruned"]]
            means, spreads = zip(*row["pruned"].values(), strict=True)
            left.errorbar(shares, [100 * m for m in means], [100 * s for s in spreads], capsize=2, **style)
            points = sorted((values["entropy"], 100 * values["score"]) for values in row["rounded"].values())
            right.plot(*zip(*points, strict=True), **style)
            best = max(best, 100 * row["score"][0])
        left.set(title=f"{model}: pruned after training", xlabel="zeros, %", ylabel="score, %")
        right.set(title=f"{model}: rounded after training", xlabel="entropy, bits a weight", ylabel="score, %")
        right.set_ylim(0.8 * best, best * 1.02)
        right.set_xlim(0, 10)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(target, dpi=110)
