"""Distributed training with Ray Train: the cluster, the placement of workers, the trainer, and copies of runs."""
