"""Several models on the same files, one row each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgekit.bundle import Bundle, BundleLike
from edgekit.errors import RuntimeUnavailable, UsageError
from edgekit.evaluation.classifiers import is_bundle, score_classifiers
from edgekit.evaluation.scorers import BundleScorer, Scorer
from edgekit.evaluation.tasks import ChoiceScore, TextScore, read_questions, score_questions, score_text
from edgekit.parity.corpus import EXPECTED
from edgekit.parity.labels import LabelScore
from edgekit.spec.names import TEXT_TOKENS, WINDOW
from edgekit.spec.progress import Progress
from edgekit.strict import read_text

MEGA = 1e6
HEAD = ("model", "method", "MB", "bits/weight")
"""The first columns of a table."""


@dataclass(frozen=True)
class Row:
    """One model: bytes of graph and weights, and its scores in the order of the files; ``tasks`` are lm-eval's."""

    model: str
    method: str
    bytes: int
    bits_per_weight: float | None
    texts: tuple[TextScore, ...]
    choices: tuple[ChoiceScore, ...]
    tasks: dict[str, dict[str, float]]
    labels: tuple[LabelScore, ...] = ()

    def cells(self) -> list[str]:
        """What stands under ``HEAD``."""
        bits = f"{self.bits_per_weight:.2f}" if self.bits_per_weight else "-"
        return [self.model, self.method, f"{self.bytes / MEGA:.2f}", bits]


@dataclass(frozen=True)
class Evaluation:
    """All models on all files."""

    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, Any]:
        """The contract of ``edgekit evaluate --json``."""
        return {"schema_version": 1, "rows": [asdict(row) for row in self.rows]}

    def measures(self) -> list[tuple[str, list[float]]]:
        """(heading, a number for each row) in the order of the columns."""
        first, columns = self.rows[0], list[tuple[str, list[float]]]()
        for i, text in enumerate(first.texts):
            columns.append((f"perplexity {Path(text.file).name}", [row.texts[i].perplexity for row in self.rows]))
        for i, choice in enumerate(first.choices):
            columns.append((f"accuracy {Path(choice.file).name}", [row.choices[i].accuracy for row in self.rows]))
        for i, label in enumerate(first.labels):
            columns.append((f"top-1 {Path(label.file).name}", [row.labels[i].top1 for row in self.rows]))
        for i, label in enumerate(first.labels):
            if label.top5 is not None:
                columns.append(
                    (f"top-5 {Path(label.file).name}", [row.labels[i].top5 or math.nan for row in self.rows])
                )
        for task, metrics in first.tasks.items():
            for metric in metrics:
                values = [row.tasks.get(task, {}).get(metric, math.nan) for row in self.rows]
                columns.append((f"{metric} {task}", values))
        return columns

    def lines(self) -> list[str]:
        """A table for people."""
        head, body = list(HEAD), [row.cells() for row in self.rows]
        for heading, values in self.measures():
            head.append(heading)
            for cells, value in zip(body, values, strict=True):
                cells.append(f"{value:.3f}" if value < 1000 else f"{value:.3g}")
        for i, choice in enumerate(self.rows[0].choices):
            head.append(f"+- {Path(choice.file).name}")
            for cells, row in zip(body, self.rows, strict=True):
                cells.append(f"{row.choices[i].error:.3f} (chance {row.choices[i].chance:.2f})")
        for i, label in enumerate(self.rows[0].labels):
            head += [f"+- {Path(label.file).name}", f"difference from {self.rows[0].model}"]
            for cells, row in zip(body, self.rows, strict=True):
                cells += [f"{row.labels[i].error:.3f} (n {row.labels[i].samples})", _difference(row.labels[i])]
        widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
        return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in (head, *body)]


def _difference(score: LabelScore) -> str:
    if score.difference is None:
        return "-"
    return f"{score.difference:+.4f} +- {score.difference_error:.4f} ({score.gained} gained, {score.lost} lost)"


def evaluate(
    models: BundleLike | Sequence[BundleLike],
    *,
    texts: Sequence[str | Path] = (),
    choices: Sequence[str | Path] = (),
    tasks: Sequence[str] = (),
    labels: Sequence[str | Path] = (),
    threads: int = 1,
    most_tokens: int = TEXT_TOKENS,
    window: int = WINDOW,
    most_questions: int = 0,
    progress: Progress = lambda what, share: None,
) -> Evaluation:
    """Scores bundles and PyTorch models (as `edgekit export` takes them) on local files.

    ``texts`` are UTF-8, the first ``most_tokens`` tokens of each (0 = all) in a ``window`` of context at most: no more
    than a model was trained with, or positions it never saw are scored. ``choices`` are JSON lines of {"question",
    "choices", "answer"}, the first ``most_questions`` of each (0 = all). ``tasks`` are of lm-evaluation-harness, which
    must be installed and fetches their data itself. ``labels``, for classifiers, are each an .npz with the model's
    inputs and ``labels``, or a directory with a folder of pictures for each class; every model after the first also has
    its difference from the first, sample by sample.

    Raises UsageError for files that cannot be used, UnsupportedError for what is no language model (no classifier, with
    ``labels``), BundleError, SourceError, RuntimeUnavailable without torch or lm-eval where they are needed.
    """
    models = [models] if isinstance(models, BundleLike) else models
    if not models or not (texts or choices or tasks or labels):
        raise UsageError("evaluate: nothing to do; give at least one model, and --text, --choices, --tasks or --labels")
    if labels and (texts or choices or tasks):
        raise UsageError(
            "evaluate: --labels is for classifiers, --text, --choices and --tasks for language models; give one kind"
        )
    if window < 2:
        raise UsageError(f"window: {window} is less than 2 tokens")
    if labels:
        scored = score_classifiers(models, labels, threads, progress)
        return Evaluation(tuple(Row(*facts, (), (), {}, scores) for facts, scores in scored))
    read = [(file, read_text(file, UsageError, EXPECTED)) for file in map(Path, texts)]
    asked = [(file, read_questions(file, most_questions)) for file in map(Path, choices)]
    rows = []
    for model in models:
        progress(f"load {model.directory if isinstance(model, Bundle) else model}", 0.0)
        scorer = open_scorer(model, threads)
        bits = None if math.isnan(scorer.bits_per_weight) else round(scorer.bits_per_weight, 4)
        scores = tuple(score_text(scorer, file, text, most_tokens, progress, window) for file, text in read)
        answers = tuple(score_questions(scorer, file, questions, progress) for file, questions in asked)
        more = _tasks(scorer, tasks, most_questions)
        rows.append(Row(scorer.name, scorer.method, scorer.bytes, bits, scores, answers, more))
    return Evaluation(tuple(rows))


def open_scorer(model: BundleLike, threads: int = 1) -> Scorer:
    """A bundle, or a PyTorch model as `edgekit export` takes it."""
    if is_bundle(model):
        return BundleScorer(model, threads)
    try:
        from edgekit.evaluation.torch_scorer import TorchScorer
    except ImportError as error:
        raise RuntimeUnavailable(
            f"{model}: is no bundle, and a PyTorch model needs PyTorch and transformers ({error}); install them"
        ) from error
    return TorchScorer(str(model))


def _tasks(scorer: Scorer, tasks: Sequence[str], most: int) -> dict[str, dict[str, float]]:
    if not tasks:
        return {}
    from edgekit.evaluation.harness import run_tasks

    return run_tasks(scorer, tasks, most)
