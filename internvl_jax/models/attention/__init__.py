"""Attention over whole rows and over caches, by the kernel that fits the platform."""
