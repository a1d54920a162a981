"""Trials: training, the driver between search and processes, journal, Ray Tune."""
