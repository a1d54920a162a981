"""One batch, from images to detections: forward pass, decoding, non-maximum suppression."""
