"""The paper's tables (arXiv 2207.02696): their figures, which spec each row is, how it was counted, and the errata."""
