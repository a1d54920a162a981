"""Augmentation of training samples: geometry, mosaic, pasted objects, colour."""
