"""The search for a scaled model within a budget."""
