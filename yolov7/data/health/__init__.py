"""Checks of annotated images: flaws of single images and boxes, copies, leaks, skew between splits."""
