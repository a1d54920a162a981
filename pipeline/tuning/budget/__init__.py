"""What a budget holds: amounts, costs of models, and the plan of epochs and trials."""
