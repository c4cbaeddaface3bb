"""Changes to the structure of a model: the same numbers, held or computed in another way."""
