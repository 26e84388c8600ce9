"""Messages and templates: what each role is given to read."""
