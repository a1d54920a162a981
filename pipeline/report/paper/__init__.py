"""The paper's tables (arXiv 2207.02696): what they print, which spec each row is, how it was counted, and the errata."""
