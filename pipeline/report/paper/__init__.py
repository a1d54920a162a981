"""What the paper prints (arXiv 2207.02696), which spec each of its rows is, how it counted, and where it errs."""
