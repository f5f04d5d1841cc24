"""What the user has (a checkpoint, a module, a file) -> ``Source`` -> ``onnx_ir.Model``."""

from edgekit.frontend.source import Source, load

__all__ = ["Source", "load"]
