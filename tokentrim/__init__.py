"""tokentrim: visual-token pruning for multimodal language models.

    with tokentrim.trim(model, "st3") as session:
        output = model.generate(**inputs, max_new_tokens=64)
    print(session.report())

Public names are imported on first use, so that ``import tokentrim`` and ``tokentrim --help`` need neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokentrim.config.specs import TrimConfig as TrimConfig
    from tokentrim.config.specs import load_config as load_config
    from tokentrim.contracts.adapter import Adapter as Adapter
    from tokentrim.contracts.adapter import Encoding as Encoding
    from tokentrim.contracts.adapter import Layout as Layout
    from tokentrim.contracts.adapter import Modality as Modality
    from tokentrim.contracts.adapter import Places as Places
    from tokentrim.contracts.adapter import decoder_shape as decoder_shape
    from tokentrim.contracts.adapter import submodule as submodule
    from tokentrim.contracts.extras import AttentionEdit as AttentionEdit
    from tokentrim.contracts.extras import AttentionEditor as AttentionEditor
    from tokentrim.contracts.extras import GuideRequest as GuideRequest
    from tokentrim.contracts.extras import PromptInfo as PromptInfo
    from tokentrim.contracts.selection import Selection as Selection
    from tokentrim.contracts.selection import pad_rows as pad_rows
    from tokentrim.contracts.selection import top_selection as top_selection
    from tokentrim.contracts.sites import Grid as Grid
    from tokentrim.contracts.sites import LayerSite as LayerSite
    from tokentrim.contracts.sites import Need as Need
    from tokentrim.contracts.sites import StepSite as StepSite
    from tokentrim.contracts.strategy import Parts as Parts
    from tokentrim.contracts.strategy import PositionPolicy as PositionPolicy
    from tokentrim.contracts.strategy import Spatial as Spatial
    from tokentrim.contracts.strategy import SpatialScorer as SpatialScorer
    from tokentrim.contracts.strategy import SpatialSelector as SpatialSelector
    from tokentrim.contracts.strategy import Stage as Stage
    from tokentrim.contracts.strategy import Strategy as Strategy
    from tokentrim.contracts.strategy import Temporal as Temporal
    from tokentrim.contracts.strategy import TemporalScorer as TemporalScorer
    from tokentrim.contracts.strategy import TemporalSelector as TemporalSelector
    from tokentrim.contracts.toolkit.cells import windows_of as windows_of
    from tokentrim.contracts.toolkit.clustering import density_peaks as density_peaks
    from tokentrim.contracts.toolkit.clustering import greedy_diverse as greedy_diverse
    from tokentrim.contracts.toolkit.clustering import thin_similar as thin_similar
    from tokentrim.contracts.trained.trainable import Trainable as Trainable
    from tokentrim.counting.forecast import plan as plan
    from tokentrim.counting.rounding import keep_count as keep_count
    from tokentrim.counting.rounding import prune_count as prune_count
    from tokentrim.counting.rounding import resolve_count as resolve_count
    from tokentrim.counting.schedule import Schedule as Schedule
    from tokentrim.counting.shape import ModelShape as ModelShape
    from tokentrim.counting.shape import VisionShape as VisionShape
    from tokentrim.counting.tilings import NOMINAL_SIZE as NOMINAL_SIZE
    from tokentrim.counting.tilings import AnyResolution as AnyResolution
    from tokentrim.counting.tilings import Assembled as Assembled
    from tokentrim.counting.tilings import FixedGrid as FixedGrid
    from tokentrim.counting.tilings import NativeResolution as NativeResolution
    from tokentrim.counting.tilings import Tiling as Tiling
    from tokentrim.engine.tokens.trace import Trace as Trace
    from tokentrim.errors import AdapterError as AdapterError
    from tokentrim.errors import ConfigError as ConfigError
    from tokentrim.errors import DataError as DataError
    from tokentrim.errors import EngineError as EngineError
    from tokentrim.errors import PluginError as PluginError
    from tokentrim.errors import ResultsError as ResultsError
    from tokentrim.errors import StrategyError as StrategyError
    from tokentrim.errors import TokentrimError as TokentrimError
    from tokentrim.errors import UnknownNameError as UnknownNameError
    from tokentrim.errors import UnsupportedError as UnsupportedError
    from tokentrim.errors import complaint as complaint
    from tokentrim.errors import unknown_name as unknown_name
    from tokentrim.hookspecs import Register as Register
    from tokentrim.hookspecs import hookimpl as hookimpl
    from tokentrim.session import Session as Session
    from tokentrim.session import apply as apply
    from tokentrim.session import restore as restore
    from tokentrim.session import trim as trim

__version__: Final = "0.1.0"

# One row per module, which may be of a room ("contracts.sites"); tests hold it equal to the imports above.
_MODULES: Final = {
    "adapter": ("Adapter", "Encoding", "Layout", "Modality", "Places", "decoder_shape", "submodule"),
    "arithmetic": ("density_peaks", "greedy_diverse", "thin_similar"),
    "budget": ("keep_count", "prune_count", "resolve_count"),
    "config": ("TrimConfig", "load_config"),
    "errors": (
        "AdapterError", "ConfigError", "DataError", "EngineError", "PluginError", "ResultsError", "StrategyError",
        "TokentrimError", "UnknownNameError", "UnsupportedError", "complaint", "unknown_name",
    ),
    "extras": ("AttentionEdit", "AttentionEditor", "GuideRequest", "PromptInfo"),
    "hookspecs": ("Register", "hookimpl"),
    "lattice": ("windows_of",),
    "plan": ("plan",),
    "schedule": ("Schedule",),
    "selection": ("Selection", "pad_rows", "top_selection"),
    "session": ("Session", "apply", "restore", "trim"),
    "shape": ("ModelShape", "VisionShape"),
    "sites": ("Grid", "LayerSite", "Need", "StepSite"),
    "strategy": (
        "Parts", "PositionPolicy", "Spatial", "SpatialScorer", "SpatialSelector", "Stage", "Strategy", "Temporal",
        "TemporalScorer", "TemporalSelector",
    ),
    "tilings": ("NOMINAL_SIZE", "AnyResolution", "Assembled", "FixedGrid", "NativeResolution", "Tiling"),
    "trace": ("Trace",),
    "trainable": ("Trainable",),
}  # fmt: skip
_HOME: Final = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_HOME]  # pyright: ignore[reportUnsupportedDunderAll]  # the names are lazy


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'tokentrim' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"tokentrim.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Public names, imported or not."""
    return sorted({*globals(), *_HOME})
