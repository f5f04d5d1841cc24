"""Does a bundle compute what it should? Parity against the compressed model, accuracy against the original."""

from edgekit.parity.report import LayerDistance, Report, Section, TextPerplexity
from edgekit.parity.verify import verify

__all__ = ["LayerDistance", "Report", "Section", "TextPerplexity", "verify"]
