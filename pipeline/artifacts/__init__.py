"""Paths and typed files that stages exchange, and checks that they fit together."""
