"""A table of AP for every model of a small space, from real trainings: what a search is measured against."""
