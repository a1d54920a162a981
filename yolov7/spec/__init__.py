"""Model specifications: rows, graph, files, scaling and auxiliary heads. Nothing here imports torch."""
