"""Which model to train next: the models to choose from, the Gaussian process that chooses, and successive halving."""
