"""Results of a search: tables, the fit of AP over cost, picture, messages, tracking."""
