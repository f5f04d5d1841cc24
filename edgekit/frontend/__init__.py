"""What the user has (a checkpoint, a module, a file) -> ``Source`` -> ``onnx_ir.Model``."""

from edgekit.frontend.source import TASKS, Source, load

__all__ = ["TASKS", "Source", "load"]
