"""``edgekit compress``: where the methods of ``compress`` meet the models that ``frontend`` reads."""

from edgekit.compression.coded import coded_bits
from edgekit.compression.run import Compressed, compress, rate_of

__all__ = ["Compressed", "coded_bits", "compress", "rate_of"]
