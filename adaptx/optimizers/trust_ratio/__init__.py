"""Steps rescaled to the size of the parameters."""
