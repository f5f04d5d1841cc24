"""How fast is a bundle, in how much memory, and may the numbers be quoted?"""

from edgekit.benchmark.results import BenchResult, Ratio, Row
from edgekit.benchmark.run import bench

__all__ = ["BenchResult", "Ratio", "Row", "bench"]
