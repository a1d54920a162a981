"""Cleaned copies of annotations in the format of the original, which stays as it is."""
