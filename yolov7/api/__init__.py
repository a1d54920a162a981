"""Functions for users of the library: train and evaluate a model on data in any readable format."""
