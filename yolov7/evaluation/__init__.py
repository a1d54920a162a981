"""COCO figures, precision and recall, and confusion of a model on a split."""
