"""Tokens: which ones are there, where they stand, and the cache that holds them."""
