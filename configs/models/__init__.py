"""Model sizes: instances of `InternVLConfig`, found by name with `sizes.get`."""
