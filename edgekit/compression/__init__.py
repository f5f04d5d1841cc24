"""``edgekit compress``: where the methods of ``compress`` meet the models that ``frontend`` reads."""

from edgekit.compression.run import Compressed, compress, rate_of

__all__ = ["Compressed", "compress", "rate_of"]
