"""Why a strategy kept what it kept: its own scores on the image, stage by stage."""

from tokentrim.explain.gather import Eviction, Explanation, Stage, explain

__all__ = ["Eviction", "Explanation", "Stage", "explain"]
