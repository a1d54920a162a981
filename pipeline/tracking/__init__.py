"""MLflow: one run per variant, seed and fingerprint, to which every stage adds.

Tracking never stops a training: once a tracker exists, nothing that a stage calls here raises, and an unreachable store
costs seconds. Every record is written to disk first (`outbox.py`), sent when the store answers, by this command or a
later one, and removed when the store has it.
"""

from pipeline.tracking.addresses import project_folder, tracking_server, tracking_uri, without_secrets
from pipeline.tracking.links import find_runs
from pipeline.tracking.records import RunKey
from pipeline.tracking.store import quiet_environment
from pipeline.tracking.tracker import TrackedRun, Tracker
from pipeline.tracking.web_page import serve_page

__all__ = [
    "RunKey",
    "TrackedRun",
    "Tracker",
    "find_runs",
    "project_folder",
    "quiet_environment",
    "serve_page",
    "tracking_server",
    "tracking_uri",
    "without_secrets",
]
