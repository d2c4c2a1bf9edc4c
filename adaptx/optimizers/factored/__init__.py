"""Factored and shared second moments, one file a paper."""
