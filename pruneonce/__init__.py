"""Prune a Transformer language model once, for all tasks: masks, distillation, QAT, ONNX. Usable alone."""
