"""Which model to train next: search space, samplers, successive halving."""
