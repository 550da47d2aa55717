"""Why a strategy kept what it kept: its own scores on the image, stage by stage."""

from tokentrim.explain.gather import DecidedStage, Eviction, Explanation, explain

__all__ = ["DecidedStage", "Eviction", "Explanation", "explain"]
