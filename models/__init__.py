"""Bundled recipes (`*.toml` in this folder) and demo models (`demo/`); installed as `eft_local.models`."""
