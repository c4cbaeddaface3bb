"""Training data made by a model: sampled responses and preference pairs."""
