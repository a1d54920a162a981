"""Results of a search: tables, the fit of AP over cost, the plot, messages and tracking."""
