"""Inference for one batch: forward pass, decoding and non-maximum suppression."""
