"""The language model, over whole rows or with a cache."""
