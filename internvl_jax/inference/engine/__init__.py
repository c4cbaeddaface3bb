"""From token prompts to tokens: programs, their sizes, and what draws the next token."""
