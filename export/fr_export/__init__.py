"""Exporters of the restoration graph: ONNX and engines."""
