"""Data sets as released: their files, samples by number, prompts, pairs, and what is wrong with them."""
