"""Checkpoints of the reference implementation: read without executing anything, mapped to our models, written back."""
