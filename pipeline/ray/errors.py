"""The error of this room that a user can correct."""

from __future__ import annotations

from yolov7.errors import UserError


class ClusterError(UserError):
    """A Ray cluster that cannot be reached, cannot be started, or has too little room."""
