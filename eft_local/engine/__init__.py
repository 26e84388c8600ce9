"""The engine: requests in, tokens out, one round at a time."""
