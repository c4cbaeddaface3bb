"""Pictures to tiles, and what a tile costs in tokens."""
