"""Annotations of tensors with shapes. They are checked in tests only, so that the library runs without jaxtyping."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Bool", "Float", "Int"]

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
else:
    try:
        from jaxtyping import Bool, Float, Int
    except ModuleNotFoundError:  # annotations are text, which is not evaluated
        Bool = Float = Int = Any
