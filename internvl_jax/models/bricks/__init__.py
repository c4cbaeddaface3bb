"""What towers and decoders are made of: linear layers, norms, rotary positions, experts."""
