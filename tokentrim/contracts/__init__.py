"""Contracts: what strategies, adapters and tasks implement, and what they are handed."""
