"""Modules: blocks, heads and the model built from a specification; its cost, and re-parameterisation."""
