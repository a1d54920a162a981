"""The package that knows MLflow: one flat run per (variant, seed, fingerprint), to which every stage adds.

Tracking is a record, never a condition: nothing here raises, and a store out of reach costs seconds. Every record is
put on disk first (`outbox.py`), sent when the store answers, by this command or a later one, and removed when the store
has it.
"""

from pipeline.tracking.records import RunKey
from pipeline.tracking.store import quiet_environment, tracking_server, tracking_uri, ui_command
from pipeline.tracking.tracker import TrackedRun, Tracker

__all__ = ["RunKey", "TrackedRun", "Tracker", "quiet_environment", "tracking_server", "tracking_uri", "ui_command"]
