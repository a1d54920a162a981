"""Model specifications: the block schema, the graph, spec files, scaling and auxiliary heads. Imports no torch."""
