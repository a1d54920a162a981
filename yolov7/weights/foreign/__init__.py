"""Import and export of weights of other implementations; nothing in their files is executed."""
