"""Methods that make a PyTorch model smaller before it is exported."""

from edgekit.methods.backslash import Backslash, BackslashCallback, Rate
from edgekit.methods.prune import Pruner, Pruning
from edgekit.methods.rate import RateReport, rate_report

__all__ = ["Backslash", "BackslashCallback", "Pruner", "Pruning", "Rate", "RateReport", "rate_report"]
