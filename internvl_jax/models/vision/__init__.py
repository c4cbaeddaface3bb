"""From tiles to image features: the tower, the projector, the router of Flash models."""
