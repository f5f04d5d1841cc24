"""The bundle: a directory with graph, weights, golden vectors and a manifest. See docs/spec.md."""

from edgekit.bundle.graph import write_graph
from edgekit.bundle.manifest import Manifest
from edgekit.bundle.reading import Bundle
from edgekit.bundle.writing import BundleWriter

__all__ = ["Bundle", "BundleWriter", "Manifest", "write_graph"]
