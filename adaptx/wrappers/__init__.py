"""Transformations to chain with, or that take, any transformation."""
