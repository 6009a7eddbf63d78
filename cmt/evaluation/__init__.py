"""Measuring how well a model answers from what it has learned."""
