"""lm-evaluation-harness on any scorer: ``pip install 'edgekit[evaluate]'``; it fetches the data of its tasks itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from edgekit.errors import CheckFailed, RuntimeUnavailable, UnsupportedError, one_line
from edgekit.evaluation.scorers import Scorer
from edgekit.evaluation.tasks import split


def run_tasks(scorer: Scorer, tasks: Sequence[str], most: int = 0) -> dict[str, dict[str, float]]:
    """Metrics by task; ``most`` questions of each (0 = all).

    Raises RuntimeUnavailable when lm-eval is not installed, CheckFailed when it stops, for instance without network.
    """
    lm_eval = _lm_eval()
    try:
        report = lm_eval.simple_evaluate(
            model=adapter(scorer), tasks=list(tasks), limit=most or None, bootstrap_iters=0
        )
    # lm-eval and the hub behind it raise whatever they meet.
    except Exception as error:
        raise CheckFailed(f"lm-eval {', '.join(tasks)}: stopped ({type(error).__name__}: {one_line(error)})") from error
    return {task: _metrics(values) for task, values in report["results"].items()}


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in values.items() if isinstance(value, int | float) and math.isfinite(value)}
    wanted = [name for name in numbers if "stderr" not in name and name != "sample_len"]
    return {name.partition(",")[0]: float(numbers[name]) for name in wanted}


def adapter(scorer: Scorer) -> Any:
    """A scorer as ``lm_eval.api.model.LM``, for ``simple_evaluate``. Raises RuntimeUnavailable without lm-eval."""
    _lm_eval()
    from lm_eval.api.model import LM

    class EdgekitLM(LM):  # type: ignore[misc]
        """Log-likelihoods; what generates text is refused."""

        def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            return [_likelihood(scorer, *request.args) for request in requests]

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            return [_rolling(scorer, request.args[0]) for request in requests]

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            raise UnsupportedError(
                "lm-eval: tasks that generate text are not supported; choose those of multiple choice"
            )

    return EdgekitLM()


def _likelihood(scorer: Scorer, context: str, ending: str) -> tuple[float, bool]:
    before, after = split(scorer.tokenizer, context, ending)
    after = after[-(scorer.limit - 1) :]
    ending_score = scorer.continuations(before[-(scorer.limit - len(after)) :], [after])[0]
    return -float(ending_score.nats.sum(dtype=np.float64)), ending_score.greedy


def _rolling(scorer: Scorer, text: str) -> float:
    """Of a whole text, in windows that do not overlap; each window's first token but the text's own is predicted from
    the last token before."""
    before, ids = split(scorer.tokenizer, "", text)
    whole, size = [*before, *ids], scorer.limit - 1
    pieces = [scorer.text(whole[start : start + size + 1]) for start in range(0, len(whole) - 1, size)]
    return -float(sum(piece.sum(dtype=np.float64) for piece in pieces))


def _lm_eval() -> Any:
    try:
        import lm_eval
    except ImportError as error:
        raise RuntimeUnavailable(
            f"lm-eval cannot be imported ({error}); pip install 'edgekit[evaluate]' for --tasks"
        ) from error
    return lm_eval
