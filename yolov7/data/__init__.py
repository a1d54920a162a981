"""Annotated images: index, image files, cache, samples and batches."""
