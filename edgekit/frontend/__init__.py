"""What the user has (a checkpoint, a module, a file) -> ``source.Source`` -> ``onnx_ir.Model``."""
