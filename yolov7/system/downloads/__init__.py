"""Downloads that can be resumed, and safe unpacking of archives."""
