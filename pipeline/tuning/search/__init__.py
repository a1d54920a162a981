"""Which model to train next: the search space, samplers and successive halving."""
