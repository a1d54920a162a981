"""Modules: blocks, heads and the model of a specification; its cost and its re-parameterisation."""
