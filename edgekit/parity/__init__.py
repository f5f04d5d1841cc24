"""Does a bundle compute what it should? Parity against the compressed model, accuracy against the original."""

from edgekit.parity.compare import Agreement, Comparison, verify_on
from edgekit.parity.report import LayerDistance, Report, Section, TextPerplexity
from edgekit.parity.verification import verify

__all__ = ["Agreement", "Comparison", "LayerDistance", "Report", "Section", "TextPerplexity", "verify", "verify_on"]
