"""A place for each model: what goes on which device, how long a context can be, how fast it will be."""
