"""How fast is a bundle, in how much memory, and may the numbers be quoted?"""

from edgekit.benchmark.results import BenchResult, BenchRow, Ratio
from edgekit.benchmark.run import bench

__all__ = ["BenchResult", "BenchRow", "Ratio", "bench"]
