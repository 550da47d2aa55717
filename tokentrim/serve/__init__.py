"""Serving: strategies inside servers that people run, one folder for each engine; none of them knows another."""
