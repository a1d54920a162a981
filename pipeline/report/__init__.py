"""Results as tables, charts and an HTML page."""
