"""P-Sigmoid: the keep rates follow a sigmoid in depth that meets a budget exactly; its shape is searched.

A sigmoid in depth whose parameters Bayesian optimisation finds under a budget is the paper's idea (arXiv 2412.00556).
The formula and the parametrisation are our **reconstruction**:

    rate(l) = lo + (hi - lo) / (1 + exp((l - centre) / width))        for layers l >= first; 1 before

``lo``, ``hi`` and ``width`` are searched; ``centre`` is solved so that the mean over all layers is the budget, and the
counts that come of it are rounded so that their sum is the budget's, to the token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tokentrim.calibrate.gsearch import Found
from tokentrim.config.schedule_file import rates_of
from tokentrim.counting.rounding import keep_count
from tokentrim.errors import ConfigError, UnsupportedError, complaint

_HALVINGS: Final = 200  # of the centre's interval: to the last bit of a double
_FAR: Final = 40.0  # widths from the centre at which exp(-x) no longer matters
_SHARPEST: Final = 0.05  # width of a curve that is a step in whole layers
_STARTUP: Final = 8  # trials before the sampler's model takes over


@dataclass(frozen=True)
class Depth:
    """What a curve is drawn over.

    Attributes:
        layers: decoder layers.
        first: first boundary at which tokens may go, >= 1.
        n_visual: visual tokens before any pruning.
        total: visual tokens that all layers together may process.
    """

    layers: int
    first: int
    n_visual: int
    total: int

    @classmethod
    def at(cls, budget: float, layers: int, first: int, n_visual: int) -> Depth:
        """The curve's room for a budget.

        Args:
            budget: share of the unpruned layer-mean visual tokens.
            layers: decoder layers.
            first: first boundary at which tokens may go.
            n_visual: visual tokens before any pruning.

        Raises:
            ConfigError: when the layers before ``first`` alone exceed the budget.
        """
        total = keep_count(budget, layers * n_visual)
        if total < first * n_visual:
            raise ConfigError(
                complaint("the budget of psigmoid", f"be at least {first / layers:.4g}: {first} of {layers} layers see "
                          "every token", budget, "raise --budget, or lower --first")
            )  # fmt: skip
        return cls(layers, first, n_visual, total)

    @property
    def room(self) -> int:
        """Tokens that the layers from ``first`` on share."""
        return self.total - self.first * self.n_visual

    @property
    def mean_rate(self) -> float:
        """Mean rate of the layers from ``first`` on."""
        return self.room / (self.n_visual * (self.layers - self.first))


def sigmoid(layer: float, lo: float, hi: float, centre: float, width: float) -> float:
    """The curve's value at a layer."""
    x = (layer - centre) / width
    return hi if x < -_FAR * 16 else lo if x > _FAR * 16 else lo + (hi - lo) / (1 + math.exp(x))


def centre_of(depth: Depth, lo: float, hi: float, width: float) -> float:
    """The centre with which the layers from ``first`` on have the mean rate that the budget leaves them.

    The mean rises with the centre, so bisection finds it. ``lo <= mean_rate <= hi`` must hold.
    """
    inside = range(depth.first, depth.layers)
    low, high = depth.first - _FAR * width, depth.layers + _FAR * width
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if sum(sigmoid(layer, lo, hi, middle, width) for layer in inside) < depth.mean_rate * len(inside):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def counts_of(depth: Depth, lo: float, hi: float, width: float) -> tuple[tuple[int, ...], float]:
    """Visual tokens of every layer, whose sum is exactly the budget's; and the centre of the curve."""
    centre = centre_of(depth, lo, hi, width)
    wanted = [depth.n_visual * sigmoid(layer, lo, hi, centre, width) for layer in range(depth.first, depth.layers)]
    return (depth.n_visual,) * depth.first + apportion(wanted, depth.room, depth.n_visual), centre


def apportion(wanted: Sequence[float], total: int, most: int) -> tuple[int, ...]:
    """Whole numbers near ``wanted`` that never rise, lie in 0..most, and sum to ``total`` exactly.

    What rounding down leaves over goes to the largest remainders, of equal ones to the first. Since ``wanted`` never
    rises, neither do the results.

    Args:
        wanted: never rising, each in 0..most.
        total: their sum but for rounding; in 0..most * len(wanted).
        most: upper limit of each.
    """
    # A count that is whole but for the last bit is meant whole.
    snapped = [round(value, 9) for value in wanted]
    counts = [min(most, max(0, math.floor(value))) for value in snapped]
    order = sorted(range(len(counts)), key=lambda index: (counts[index] - snapped[index], index))
    while (missing := total - sum(counts)) != 0:
        if missing > 0:
            for index in [index for index in order if counts[index] < most][:missing]:
                counts[index] += 1
        else:  # too many only where the curve could not come as low as the sum asks
            for index in [index for index in reversed(order) if counts[index] > 0][:-missing]:
                counts[index] -= 1
    return tuple(sorted(counts, reverse=True))


def psigmoid(evaluate: Callable[[dict[int, float]], float], depth: Depth, *, trials: int, seed: int) -> Found:
    """Search the curve with the best quality among those that meet the budget.

    The first two trials are the plainest curves, one cut at the first boundary and everything up to some layer and
    nothing after, so that the result is at least as good as they are (on these questions).

    Args:
        evaluate: quality of a model pruned by these rates; higher is better. Equal curves are asked once.
        depth: the model's layers, and the budget.
        trials: curves to try.
        seed: of the sampler. The same seed and the same answers of ``evaluate`` give the same search.

    Raises:
        UnsupportedError: when optuna is not installed.
    """
    optuna = require_optuna()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    study.enqueue_trial({"low": 1.0, "high": 0.0, "width": _SHARPEST})
    study.enqueue_trial({"low": 0.0, "high": 1.0, "width": _SHARPEST})
    asked: dict[tuple[int, ...], float] = {}
    found, best = Found(), -math.inf
    for _ in range(trials):
        trial = study.ask()
        # Shares of what is possible: whatever they are, some centre meets the budget.
        lo = trial.suggest_float("low", 0.0, 1.0) * depth.mean_rate
        hi = depth.mean_rate + trial.suggest_float("high", 0.0, 1.0) * (1 - depth.mean_rate)
        width = trial.suggest_float("width", _SHARPEST, float(depth.layers), log=True)
        counts, centre = counts_of(depth, lo, hi, width)
        if counts not in asked:
            asked[counts] = evaluate(rates_of(counts, depth.n_visual))
        quality = asked[counts]
        study.tell(trial, quality)
        curve = {"lo": lo, "hi": hi, "width": width, "centre": centre}
        found.trace.append({**{key: round(value, 6) for key, value in curve.items()}, "quality": quality})
        if quality > best:
            best, found.rates = quality, rates_of(counts, depth.n_visual)
    return found


def require_optuna() -> Any:
    """The module optuna.

    Raises:
        UnsupportedError: when it is not installed.
    """
    try:
        import optuna
    except ImportError as cause:
        raise UnsupportedError(
            complaint(
                "tokentrim calibrate psigmoid",
                "find optuna",
                "no optuna",
                "install the extra: pip install 'tokentrim-vlm[calibrate]'",
            )
        ) from cause
    return optuna
