"""Toolkit: selections that many methods share, batched and without a loop over tokens."""
