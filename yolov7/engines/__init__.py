"""Engines that run a trained model or an exported file: torch, ONNX Runtime, OpenVINO, TensorRT."""
