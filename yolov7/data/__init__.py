"""Annotated images: the index of a split, image files, the cache, samples and batches."""
