"""Transformers' own server, with a strategy in every answer: ``tokentrim serve``."""
