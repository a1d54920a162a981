"""Exported models: ONNX, OpenVINO, TorchScript, TensorRT, INT8, and the proof that they are equal."""
