"""Modules: blocks, heads, the model of a specification, its cost, re-parameterisation."""
