"""The command line. Commands import what they need when they run, so that ``--help`` needs neither torch nor models."""

from tokentrim.cli.app import app, main

__all__ = ["app", "main"]
