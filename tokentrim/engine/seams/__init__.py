"""Seams: all that knows the inside of transformers and torch modules. A new release is followed here."""
