"""Files, locks, YAML, devices, precision and memory: what the operating system and the machine provide."""
