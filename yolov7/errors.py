"""The errors that a user can cause; each message names the thing, its value, the rule and the remedy."""

from __future__ import annotations


class SpecError(ValueError):
    """A model specification that cannot be built."""


class DataError(ValueError):
    """Images or annotations that cannot be used."""


class ArtifactError(ValueError):
    """A file handed from one stage to the next that is missing, damaged or of another make."""
