"""A bundle as one entropy-coded file for download. See docs/pack.md."""

from edgekit.coding.packing import Packed, pack
from edgekit.coding.unpacking import unpack

__all__ = ["Packed", "pack", "unpack"]
