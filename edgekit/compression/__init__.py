"""``edgekit compress``: where the methods of ``compress`` meet the models that ``frontend`` reads."""

from edgekit.compression.run import Compressed, compress, rate_of
from edgekit.compression.settings import Compression

__all__ = ["Compressed", "Compression", "compress", "rate_of"]
