"""Running a bundle in ONNX Runtime: sessions, decoding, generation. Imports no torch."""
