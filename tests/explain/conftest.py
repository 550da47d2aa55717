"""A picture to ask about."""

from tests.cli.conftest import picture, sample

__all__ = ["picture", "sample"]
