"""Trials of a search: their training, the driver that starts and ends them, the journal, and Ray Tune around them."""
