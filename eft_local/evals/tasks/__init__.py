"""The papers' tasks as lm-eval's task files, and what these call."""
