"""What users of a trained model hold: the detector, and drawings of its detections."""
