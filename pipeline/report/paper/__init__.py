"""What the paper prints, which spec each row is, how it was counted, and its errata."""
