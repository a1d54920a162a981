"""The measured AP of every model of a small space, with which searches are tested."""
