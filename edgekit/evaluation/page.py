"""An evaluation as one self-contained HTML page: the table, and each measure against bytes as an SVG plot."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path

from edgekit.errors import CheckFailed, UsageError
from edgekit.evaluation.evaluator import HEAD, MEGA, Evaluation

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 380, 70, 30, 20, 50
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#bf3989", "#57606a", "#0a7ea4")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328; background: #fff }
table { border-collapse: collapse; width: 100% } th, td { padding: .3rem .6rem; border-bottom: 1px solid #d1d9e0; text-align: right }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left } svg { width: 100%; height: auto }
figure { margin: 2rem 0 } figcaption, .note { color: #59636e }
"""


def write_page(evaluation: Evaluation, path: Path) -> None:
    """Writes the page in one step. Raises UsageError for a bad place, CheckFailed when it cannot be written."""
    check_place(path)
    part = path.with_name(f".{path.name}.partial")
    try:
        part.write_text(page(evaluation), encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        raise CheckFailed(f"{path}: cannot be written ({error.strerror}); give a place that can be") from error
    finally:
        part.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Raises UsageError where no page can be written: better before an evaluation of hours than after it."""
    if path.is_dir():
        raise UsageError(f"{path}: is a directory; --page takes the name of a file to write")
    if not path.absolute().parent.is_dir() or not os.access(path.absolute().parent, os.W_OK):
        raise UsageError(f"{path}: there is no directory to write it in; make {path.parent} or give another --page")


def page(evaluation: Evaluation) -> str:
    """The page's text; it loads nothing from anywhere."""
    figures = "".join(_figure(evaluation, heading, values) for heading, values in evaluation.measures())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>edgekit evaluate</title><style>{STYLE}</style></head><body><h1>Accuracy against bytes</h1>"
        f'{_table(evaluation)}<p class="note">MB: graph and weights, 10<sup>6</sup> bytes. Bits per weight count scales and '
        "adapters. Perplexity: over windows that do not overlap. Accuracy: the choice of the highest log-likelihood per "
        f"byte; top-1: the likeliest class is the label; &#177; is the standard error.</p>{figures}</body></html>\n"
    )


def _table(evaluation: Evaluation) -> str:
    measures = evaluation.measures()
    head = [*HEAD, *(heading for heading, _ in measures)]
    lines = []
    for place, row in enumerate(evaluation.rows):
        cells = [*row.cells(), *(_number(v[place]) for _, v in measures)]
        errors = [choice.error for choice in row.choices] + [label.error for label in row.labels]
        for i, error in enumerate(errors, len(row.texts) + len(HEAD)):
            cells[i] += f" ± {error:.3f}"
        lines.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return f"<table><tr>{''.join(f'<th>{html.escape(h)}</th>' for h in head)}</tr>{''.join(lines)}</table>"


def _figure(evaluation: Evaluation, heading: str, values: Sequence[float]) -> str:
    rows = [
        (row.model, row.method, row.bytes, value)
        for row, value in zip(evaluation.rows, values, strict=True)
        if math.isfinite(value)
    ]
    if not rows:
        return ""
    horizontal = _Axis([math.log10(max(1, size)) for _, _, size, _ in rows], LEFT, WIDTH - RIGHT)
    vertical = _Axis([value for *_, value in rows], HEIGHT - BOTTOM, TOP)
    methods = list(dict.fromkeys(method for _, method, _, _ in rows))
    parts = [
        f'<line x1="{LEFT}" y1="{HEIGHT - BOTTOM}" x2="{WIDTH - RIGHT}" y2="{HEIGHT - BOTTOM}" stroke="#59636e"/>'
        f'<line x1="{LEFT}" y1="{TOP}" x2="{LEFT}" y2="{HEIGHT - BOTTOM}" stroke="#59636e"/>'
    ]
    for at in horizontal.ticks():
        x = horizontal(at)
        parts.append(_text(x, HEIGHT - BOTTOM + 18, f"{10**at / MEGA:.3g}", "middle"))
    for at in vertical.ticks():
        y = vertical(at)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eaeef2"/>')
        parts.append(_text(LEFT - 8, y + 4, _number(at), "end"))
    for model, method, size, value in rows:
        x, y = horizontal(math.log10(max(1, size))), vertical(value)
        colour = COLOURS[methods.index(method) % len(COLOURS)]
        label = html.escape(f"{model} ({method}): {size / MEGA:.2f} MB, {heading} {_number(value)}")
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{colour}"><title>{label}</title></circle>')
        side = "end" if x > WIDTH / 2 else "start"
        parts.append(_text(x + (-10 if side == "end" else 10), y - 8, f"{model}, {method}", side))
    parts.append(_text((LEFT + WIDTH) / 2, HEIGHT - 10, "MB of graph and weights (logarithmic)", "middle"))
    name = html.escape(heading)
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name} against bytes">{"".join(parts)}</svg>'
        f"<figcaption>{name} against bytes</figcaption></figure>"
    )


class _Axis:
    """Values to places between ``begin`` and ``end``, with a little room on both sides."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = min(values), max(values)
        room = (high - low) * 0.1 or abs(high) * 0.1 or 1.0
        self.low, self.high, self.begin, self.end = low - room, high + room, begin, end

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Five places."""
        return [self.low + (i + 0.5) / 5 * (self.high - self.low) for i in range(5)]


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" fill="#1f2328" text-anchor="{anchor}">{html.escape(text)}</text>'
    )


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}"
