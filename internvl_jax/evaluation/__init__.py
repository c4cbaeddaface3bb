"""Accuracy on question files, parity with recorded outputs, pictures of what a router decides."""
