"""Speculative decoding: drafts of small roles, and how the mixture decides on them."""
