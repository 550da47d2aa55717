"""Seams: what knows the inside of transformers, beside the classes of its caches (``tokens/cache.py``)."""
