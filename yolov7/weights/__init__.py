"""Weight files in the native format, and the transfer of weights between models."""
