"""Files, locks, YAML, devices, precision, memory and timing."""
