"""Measurements for RESULTS.md, and what they and the tests are made with: in the repository, not installed."""
