"""GGUF files without llama.cpp: what is in them, whether it is sound, and what it says of the model."""
