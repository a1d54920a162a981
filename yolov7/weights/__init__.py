"""Weight files: the native format, and transfer between models."""
