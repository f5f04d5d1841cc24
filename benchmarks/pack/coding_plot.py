"""The plot of benchmarks/coding.py: bits above the entropy, and decoding speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLOURS = {
    "pack": "tab:blue", "deepcabac": "tab:orange", "xz": "tab:green", "deflate": "tab:olive", "exp-golomb-k": "tab:red",
    "exp-golomb": "tab:pink",
}  # fmt: skip
MOST = 60
"""Per cent; bars above are cut and say so."""


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """Writes ``target``, a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["source"] for row in rows))
    coders = [coder for coder in COLOURS if any(row["coder"] == coder for row in rows)]
    figure, (size, speed) = pyplot.subplots(2, 1, figsize=(13, 8), sharex=True, constrained_layout=True)
    width = 0.85 / len(coders)
    for index, coder in enumerate(coders):
        of_coder = {row["source"]: row for row in rows if row["coder"] == coder}
        at = [place + (index - (len(coders) - 1) / 2) * width for place, name in enumerate(names) if name in of_coder]
        over = [100 * of_coder[name]["over_entropy"] for name in names if name in of_coder]
        size.bar(at, [min(value, MOST) for value in over], width, color=COLOURS[coder], label=coder)
        for place, value in zip(at, over, strict=True):
            if value > MOST:
                size.text(place, MOST, f"{value:.0f}", ha="center", va="bottom", fontsize=6, rotation=90)
        fast = [(place, of_coder[name]) for place, name in zip(at, names, strict=False) if of_coder[name]["decode"]]
        if fast:
            speed.bar([place for place, _ in fast], [row["decode"] for _, row in fast], width, color=COLOURS[coder])
    size.axhline(0, color="black", linewidth=0.8)
    size.axhline(2, color="grey", linewidth=0.8, linestyle="--")
    size.set_ylabel("bits above context-free entropy, %")
    size.legend(ncols=len(coders))
    speed.axhline(50, color="grey", linewidth=0.8, linestyle="--")
    speed.set_yscale("log")
    speed.set_ylabel("decoding, million weights a second and core")
    speed.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    figure.savefig(target, dpi=110)
