"""The version, in a module of its own so that building reads it without importing anything else."""

__version__ = "0.2.0"
