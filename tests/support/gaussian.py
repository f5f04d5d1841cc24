"""What the entropy of rounded generalized Gaussians is known to be."""

from __future__ import annotations

import math

from edgekit.methods.gaussian import scale_of


def entropy_bits(nu: float, deviation: float, step: float) -> float:
    """Bits a value after rounding to multiples of ``step``, at high rate (deviation at least about ``step``)."""
    scale = scale_of(nu, deviation)
    return math.log2(2 * scale / (nu * step)) + math.lgamma(1 / nu) / math.log(2) + 1 / (nu * math.log(2))
