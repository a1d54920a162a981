"""Ray Train: cluster, placement of workers, trainer, folders and copies of unfinished runs."""
