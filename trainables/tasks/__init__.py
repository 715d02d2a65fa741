"""The built-in tasks: a model family over width, with its data."""
