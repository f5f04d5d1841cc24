"""Methods that make a PyTorch model smaller before it is exported."""

from edgekit.compress.backslash import Backslash, BackslashCallback, Rate

__all__ = ["Backslash", "BackslashCallback", "Rate"]
