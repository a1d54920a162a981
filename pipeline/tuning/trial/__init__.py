"""Trials: their training, the driver between search and processes, the journal, and Ray Tune."""
