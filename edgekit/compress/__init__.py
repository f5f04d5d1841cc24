"""Methods that make a PyTorch model smaller before it is exported."""

from edgekit.compress.backslash import Backslash, BackslashCallback, Rate
from edgekit.compress.prune import Pruner, Pruning
from edgekit.compress.rate import RateReport, rate_report

__all__ = ["Backslash", "BackslashCallback", "Pruner", "Pruning", "Rate", "RateReport", "rate_report"]
