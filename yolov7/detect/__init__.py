"""What users of a trained model hold: the detector, and drawings of what it found."""
