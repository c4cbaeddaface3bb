"""A model behind an API, and a page to talk to it."""
