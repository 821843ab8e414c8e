"""How the world talks to Overnight: OpenAI's HTTP API for files, batches and models."""
