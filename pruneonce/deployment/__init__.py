"""What ships: ONNX files, their proof, their runtime, their packed form."""
