"""Every feature, under one strategy of every ability: right, or refused with the reason that the table gives."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from tests.engine.cases import deviation
from tests.every_family import FAMILIES
from tests.generate.bench import KINDS, Bench, representatives
from tests.generate.features import FEATURES, RECENT, Feature, expects
from tokentrim.errors import DataError, UnsupportedError
from tokentrim.selftest.subject import state
from tokentrim.session import trim, unwrapped

_HERE = [feature for feature in FEATURES if not feature.elsewhere]
_OTHERS = ("none", "inside", "both")
"""Kinds that families beside the first are tried with: the features are the engine's, the families the adapters'."""
_SIBLINGS = ("qwen2-vl", "qwen3-vl-moe")
"""They have the adapter, the positions and the caches of Qwen2.5-VL and Qwen3-VL, which meet every feature."""


def _kinds(number: int, family: str, feature: Feature) -> tuple[str, ...]:
    """All kinds with the first family; beside it a feature meets every family once, and the kinds in turn.

    Of siblings it meets one.
    """
    if family == "llava":
        return feature.kinds
    if family in _SIBLINGS and _SIBLINGS[_HERE.index(feature) % len(_SIBLINGS)] != family:
        return ()
    kinds = [kind for kind in _OTHERS if kind in feature.kinds and kind not in feature.first_only]
    return (kinds[(number + _HERE.index(feature)) % len(kinds)],)


def _cases() -> list[Any]:
    found: list[Any] = []
    for number, (name, family) in enumerate(FAMILIES.items()):
        for feature in _HERE:
            for kind in _kinds(number, name, feature) if feature.serves(family) else ():
                found.append(pytest.param(name, feature, kind, id=f"{name}-{feature.name}-{kind}"))
    return found


# Of torch and transformers, as they compile flex attention.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:_compile flag on create_block_mask.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
@pytest.mark.parametrize(("family", "feature", "kind"), _cases())
def test_feature(family: str, feature: Feature, kind: str) -> None:
    with torch.compiler.set_stance("force_eager") if feature.unfused else nullcontext():
        _tried(family, feature, kind)


def _tried(family: str, feature: Feature, kind: str) -> None:
    if not RECENT and (feature.recent or (feature.expands and family == "llava-next-video")):
        pytest.skip("this release of transformers cannot do it, with and without tokentrim")
    kept: dict[str, Any] = {}
    bench = Bench(FAMILIES[family], kind, feature.build(FAMILIES[family], kept), kept=kept)
    inner = unwrapped(bench.model)[0]
    if all(parameter.device.type != "meta" for parameter in inner.parameters()) or hasattr(inner, "_hf_hook"):
        with torch.no_grad():
            inner(**bench.one())  # transformers hooks a vision tower when it first runs
    untouched = feature.run(bench) if kind == "none" and expects(feature, kind) is None else None
    before = state(inner)
    message = expects(feature, kind)
    if message is not None:
        with pytest.raises((UnsupportedError, DataError), match=message):
            _refused(bench, feature)
    else:
        with bench.opened():
            bench.found = feature.run(bench)
            expected = feature.same_as(bench) if feature.same_as is not None and kind != "none" else None
        if untouched is not None:
            _same(untouched, bench.found, 0.0)
        if expected is not None:
            _same(expected, bench.found, feature.tolerance)
    assert state(inner) == before


def _refused(bench: Bench, feature: Feature) -> None:
    if feature.outside:
        trim(bench.model, bench.spec)
        return
    with bench.opened():
        feature.run(bench)


def _same(expected: list[torch.Tensor], found: list[torch.Tensor], tolerance: float) -> None:
    assert len(expected) == len(found) > 0
    for wanted, got in zip(expected, found, strict=True):
        assert wanted.shape == got.shape
        assert bool(wanted.isfinite().all())
        if tolerance and wanted.is_floating_point():
            off = deviation(got.float(), wanted.float())
            assert off < tolerance, f"off by {off:.1e}"
        else:
            assert torch.equal(got, wanted)


def test_every_kind_of_strategy_is_represented() -> None:
    assert set(representatives()) == set(KINDS)
