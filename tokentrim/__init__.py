"""tokentrim: visual-token pruning for multimodal language models.

    with tokentrim.trim(model, "st3") as session:
        output = model.generate(**inputs, max_new_tokens=64)
    print(session.report())

Public names are imported on first use, so that ``import tokentrim`` and ``tokentrim --help`` need neither torch nor
transformers.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from tokentrim.adapter import Adapter as Adapter
    from tokentrim.budget import keep_count as keep_count
    from tokentrim.config import TrimConfig as TrimConfig
    from tokentrim.config import load_config as load_config
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
    from tokentrim.plan import plan as plan
    from tokentrim.plugins import hookimpl as hookimpl
    from tokentrim.schedule import Schedule as Schedule
    from tokentrim.selection import Selection as Selection
    from tokentrim.session import Session as Session
    from tokentrim.session import apply as apply
    from tokentrim.session import restore as restore
    from tokentrim.session import trim as trim
    from tokentrim.shape import ModelShape as ModelShape
    from tokentrim.sites import LayerSite as LayerSite
    from tokentrim.sites import Need as Need
    from tokentrim.sites import StepSite as StepSite
    from tokentrim.strategy import SpatialScorer as SpatialScorer
    from tokentrim.strategy import SpatialSelector as SpatialSelector
    from tokentrim.strategy import Strategy as Strategy
    from tokentrim.strategy import TemporalScorer as TemporalScorer
    from tokentrim.strategy import TemporalSelector as TemporalSelector
    from tokentrim.trace import Trace as Trace

__version__: Final = "0.1.0"

# One row per module; tests hold it equal to the imports above.
_MODULES: Final = {
    "adapter": ("Adapter",),
    "budget": ("keep_count",),
    "config": ("TrimConfig", "load_config"),
    "errors": (
        "AdapterError", "ConfigError", "DataError", "EngineError", "PluginError", "ResultsError", "StrategyError",
        "TokentrimError", "UnknownNameError", "UnsupportedError",
    ),
    "plan": ("plan",),
    "plugins": ("hookimpl",),
    "schedule": ("Schedule",),
    "selection": ("Selection",),
    "session": ("Session", "apply", "restore", "trim"),
    "shape": ("ModelShape",),
    "sites": ("LayerSite", "Need", "StepSite"),
    "strategy": ("SpatialScorer", "SpatialSelector", "Strategy", "TemporalScorer", "TemporalSelector"),
    "trace": ("Trace",),
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


class _Package(ModuleType):
    """The package as a module in which a public name wins over a submodule that is spelt the same.

    Importing a submodule binds it to its package's attribute of that name. Without this, ``tokentrim.plan`` would be
    the function or the module, depending on what was imported first.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
