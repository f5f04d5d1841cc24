"""How fast is a bundle, in how much memory, and may the numbers be quoted?"""

from edgekit.bench.bench import bench
from edgekit.bench.report import BenchResult, Ratio, Row

__all__ = ["BenchResult", "Ratio", "Row", "bench"]
