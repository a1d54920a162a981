"""What training minimises: label assigners and the detection loss."""
