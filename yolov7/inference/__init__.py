"""From images to detections for one batch: the forward pass, decoding and non-maximum suppression."""
