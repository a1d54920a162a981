"""Ray Train: cluster, placement of workers, trainer, copies of unfinished runs."""
