"""Families of models that can be timed: what each puts into its config, and into a prompt with pictures."""
