"""InternVL3.5 in JAX."""
