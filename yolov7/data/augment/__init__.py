"""Augmentation of training samples: geometry, mosaic, pasted objects and colour."""
