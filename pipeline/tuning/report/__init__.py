"""Results of a search: tables, the fit of AP over cost, the picture, messages and tracking."""
