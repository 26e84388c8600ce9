"""Trains the demo family from nothing: facts → corpus → tokenizer → base, small → tuned models → GGUF → report.

One command does it all: `python -m eft_local.models.demo.training` (see __main__.py for its flags).
"""
