"""Accuracy of bundles and models on the user's own files: perplexity, multiple choice, a page with plots."""

from edgekit.evaluation.evaluator import Evaluation, Row, evaluate

__all__ = ["Evaluation", "Row", "evaluate"]
