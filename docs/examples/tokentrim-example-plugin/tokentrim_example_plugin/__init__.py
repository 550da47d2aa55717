"""A plugin for tokentrim: one strategy, ``feature-norm``."""

from tokentrim import Register, hookimpl


@hookimpl
def tokentrim_strategies(register: Register) -> None:
    """Register the strategy by name; its file is imported when somebody asks for it."""
    register(
        "feature-norm",
        "tokentrim_example_plugin.strategy:FeatureNorm",
        stage="prefill",
        summary="keep the visual tokens with the largest features",
    )
