"""The server: what comes in by HTTP is bounded, made into prompts, answered by the engine, and told as OpenAI does."""
