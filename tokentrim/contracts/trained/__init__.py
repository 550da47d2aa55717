"""Trained strategies: what carries weights, how they are stored, and sketches of a picture."""
