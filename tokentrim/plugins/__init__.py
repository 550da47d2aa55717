"""Plugins: finding what is registered by name, ours and strangers' through the same door."""
