"""tokentrim: visual-token pruning for multimodal language models.

    with tokentrim.trim(model, "st3") as session:
        output = model.generate(**inputs, max_new_tokens=64)
    print(session.report())

Public names are imported on first use, so that ``import tokentrim`` and ``tokentrim --help`` need neither torch nor
transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tokentrim.lazy import lazy

if TYPE_CHECKING:
    from tokentrim.config.specs import (
        TrimConfig as TrimConfig,
        load_config as load_config,
        strategy_from as strategy_from,
    )
    from tokentrim.contracts.adapter import (
        Adapter as Adapter,
        Encoding as Encoding,
        Layout as Layout,
        Modality as Modality,
        Places as Places,
        TowerBlock as TowerBlock,
        decoder_shape as decoder_shape,
        submodule as submodule,
    )
    from tokentrim.contracts.extras import (
        AttentionEdit as AttentionEdit,
        AttentionEditor as AttentionEditor,
        CacheMerger as CacheMerger,
        GuideRequest as GuideRequest,
        PromptInfo as PromptInfo,
        TowerMerger as TowerMerger,
    )
    from tokentrim.contracts.knobs import ReplacedBy as ReplacedBy
    from tokentrim.contracts.selection import (
        Selection as Selection,
        pad_rows as pad_rows,
        top_selection as top_selection,
    )
    from tokentrim.contracts.sites import (
        FROM_TOWER as FROM_TOWER,
        Grid as Grid,
        LayerSite as LayerSite,
        Need as Need,
        StepSite as StepSite,
    )  # fmt: skip
    from tokentrim.contracts.strategy import (
        Parts as Parts,
        PositionPolicy as PositionPolicy,
        Spatial as Spatial,
        SpatialScorer as SpatialScorer,
        SpatialSelector as SpatialSelector,
        Stage as Stage,
        Strategy as Strategy,
        Temporal as Temporal,
        TemporalScorer as TemporalScorer,
        TemporalSelector as TemporalSelector,
    )
    from tokentrim.contracts.tasks import Evidence as Evidence, Sample as Sample, Task as Task
    from tokentrim.contracts.toolkit.cells import along as along, windows_of as windows_of
    from tokentrim.contracts.toolkit.clip import ClipSpace as ClipSpace
    from tokentrim.contracts.toolkit.clustering import (
        clustered as clustered,
        connected as connected,
        density_peaks as density_peaks,
        first_argmax as first_argmax,
        like_sizes as like_sizes,
        thin_similar as thin_similar,
        unit as unit,
        within as within,
    )
    from tokentrim.contracts.toolkit.greedy import (
        farthest_first as farthest_first,
        greedy_cover as greedy_cover,
        greedy_diverse as greedy_diverse,
        greedy_order as greedy_order,
        greedy_volume as greedy_volume,
        marked as marked,
    )
    from tokentrim.contracts.toolkit.groups import Groups as Groups
    from tokentrim.contracts.toolkit.merging import (
        added as added,
        cluster_means as cluster_means,
        merge_into as merge_into,
        most_alike as most_alike,
        rows_at as rows_at,
        written as written,
    )
    from tokentrim.contracts.toolkit.pictures import Pictures as Pictures
    from tokentrim.contracts.toolkit.ranking import (
        grouped_order as grouped_order,
        numbered as numbered,
        ranks_within as ranks_within,
    )
    from tokentrim.contracts.trained.trainable import Trainable as Trainable
    from tokentrim.counting.forecast import NEW_TOKENS as NEW_TOKENS, plan as plan
    from tokentrim.counting.rounding import (
        keep_count as keep_count,
        prune_count as prune_count,
        resolve_count as resolve_count,
    )
    from tokentrim.counting.schedule import Schedule as Schedule
    from tokentrim.counting.shape import ModelShape as ModelShape, VisionShape as VisionShape
    from tokentrim.counting.tilings import (
        NOMINAL_SIZE as NOMINAL_SIZE,
        AnyResolution as AnyResolution,
        Assembled as Assembled,
        Cut as Cut,
        FixedGrid as FixedGrid,
        NativeResolution as NativeResolution,
        Tiling as Tiling,
    )
    from tokentrim.engine.recording import recording as recording
    from tokentrim.engine.tokens.trace import Trace as Trace
    from tokentrim.errors import (
        AdapterError as AdapterError,
        ConfigError as ConfigError,
        DataError as DataError,
        EngineError as EngineError,
        PluginError as PluginError,
        ResultsError as ResultsError,
        StrategyError as StrategyError,
        TokentrimError as TokentrimError,
        UnknownNameError as UnknownNameError,
        UnsupportedError as UnsupportedError,
        complaint as complaint,
        unknown_name as unknown_name,
    )
    from tokentrim.hookspecs import Register as Register, hookimpl as hookimpl
    from tokentrim.plugins.loader import PluginWarning as PluginWarning, registry as registry
    from tokentrim.plugins.registry import Family as Family
    from tokentrim.reading import Video as Video
    from tokentrim.session import Session as Session, apply as apply, restore as restore, trim as trim

__version__: Final = "0.1.0"

# By module; tests hold it equal to the imports above.
__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "config.specs": "TrimConfig, load_config, strategy_from",
        "contracts.adapter": "Adapter, Encoding, Layout, Modality, Places, TowerBlock, decoder_shape, submodule",
        "contracts.extras": "AttentionEdit, AttentionEditor, CacheMerger, GuideRequest, PromptInfo, TowerMerger",
        "contracts.knobs": "ReplacedBy",
        "contracts.selection": "Selection, pad_rows, top_selection",
        "contracts.sites": "FROM_TOWER, Grid, LayerSite, Need, StepSite",
        "contracts.strategy": (
            "Parts, PositionPolicy, Spatial, SpatialScorer, SpatialSelector, Stage, Strategy, Temporal, "
            "TemporalScorer, TemporalSelector"
        ),
        "contracts.tasks": "Evidence, Sample, Task",
        "contracts.toolkit.cells": "along, windows_of",
        "contracts.toolkit.clip": "ClipSpace",
        "contracts.toolkit.clustering": (
            "clustered, connected, density_peaks, first_argmax, like_sizes, thin_similar, unit, within"
        ),
        "contracts.toolkit.greedy": (
            "farthest_first, greedy_cover, greedy_diverse, greedy_order, greedy_volume, marked"
        ),
        "contracts.toolkit.groups": "Groups",
        "contracts.toolkit.merging": "added, cluster_means, merge_into, most_alike, rows_at, written",
        "contracts.toolkit.pictures": "Pictures",
        "contracts.toolkit.ranking": "grouped_order, numbered, ranks_within",
        "contracts.trained.trainable": "Trainable",
        "counting.forecast": "NEW_TOKENS, plan",
        "counting.rounding": "keep_count, prune_count, resolve_count",
        "counting.schedule": "Schedule",
        "counting.shape": "ModelShape, VisionShape",
        "counting.tilings": "NOMINAL_SIZE, AnyResolution, Assembled, Cut, FixedGrid, NativeResolution, Tiling",
        "engine.recording": "recording",
        "engine.tokens.trace": "Trace",
        "errors": (
            "AdapterError, ConfigError, DataError, EngineError, PluginError, ResultsError, StrategyError, "
            "TokentrimError, UnknownNameError, UnsupportedError, complaint, unknown_name"
        ),
        "hookspecs": "Register, hookimpl",
        "plugins.loader": "PluginWarning, registry",
        "plugins.registry": "Family",
        "reading": "Video",
        "session": "Session, apply, restore, trim",
    },
)
__all__ += ["__version__"]
