"""What a budget allows: amounts, costs of models, epochs and trials."""
