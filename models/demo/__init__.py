"""The demo models: GGUF files, evaluation questions and, in `training`, the code that made them."""
