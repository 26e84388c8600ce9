"""The computer that models run on: what other programs leave of it."""
