"""Decoupled vision and language servers: the wire, and both of its ends."""
