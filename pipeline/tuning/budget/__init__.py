"""What a budget allows: amounts, the cost of models, and how long and how many trials train."""
