"""Weights of other implementations, read without executing anything in them."""
