"""Weight files, and transfer of weights between models."""
