"""Model specifications: block schema, graph, files, scaling, auxiliary heads. Imports no torch."""
