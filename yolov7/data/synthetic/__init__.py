"""The embedded data set, which the project draws from a seed."""
