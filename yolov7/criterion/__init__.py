"""Label assigners and the detection loss."""
