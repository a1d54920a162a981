"""The training loop of one process, and everything that it needs to resume exactly."""
