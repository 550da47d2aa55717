"""Abilities: what some strategies read or change beside the choice of tokens."""
