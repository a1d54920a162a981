"""Paths and typed files that stages hand on, and checks that they fit together."""
