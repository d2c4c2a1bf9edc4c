"""Adam and its line: a first moment over the root of a second."""
