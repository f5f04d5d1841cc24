"""The low-bit operators on the Python side: formats, ONNX function bodies, numpy reference."""
