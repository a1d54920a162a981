"""The embedded data set, which is drawn from a seed."""
