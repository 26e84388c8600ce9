"""The terminal app: chat with an emulated model, and see who decided each token."""
