"""ONNX files of a task model: export, checks, measurement, ONNX Runtime sessions, packing for download."""
