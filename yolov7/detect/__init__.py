"""The detector for users of a trained model, and drawings of its detections."""
