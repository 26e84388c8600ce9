"""Whole screens and dialogs over the chat."""
