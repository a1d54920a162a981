"""The DVC stages: one module per stage. Stages exchange files only."""
