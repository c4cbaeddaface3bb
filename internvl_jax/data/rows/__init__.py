"""Packed rows of samples: which samples stand in them, in which order, and the batches that a step takes."""
