"""The DVC stages, one module each. Stages exchange files only."""
