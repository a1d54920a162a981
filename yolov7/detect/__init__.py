"""Use of trained models: the detector, and drawings of detections."""
