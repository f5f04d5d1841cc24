"""The bundle: a directory with graph, weights, golden vectors and a manifest. See docs/spec.md."""

from edgekit.bundle.graph import write_graph
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reading import Bundle, BundleLike
from edgekit.bundle.writing import BundleWriter

__all__ = ["Bundle", "BundleLike", "BundleWriter", "Manifest", "write_graph"]
