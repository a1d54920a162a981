"""Commands that use a trained model: predict, export, serve."""

from __future__ import annotations
