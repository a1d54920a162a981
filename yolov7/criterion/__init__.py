"""What training minimises: label assignment and the detection loss."""
