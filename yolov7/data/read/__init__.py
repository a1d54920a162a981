"""Readers of annotation formats; each returns an index and the flaws that it found."""
