"""From a config that asks for a strategy to one that vLLM serves with it, or an error before an engine starts."""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from tokentrim.errors import UnsupportedError, complaint
from tokentrim.serve.vllm.asked import PrunedFamily, from_text, of_server, require_servable
from tokentrim.serve.vllm.families import SERVED

_LOG: Final = logging.getLogger("vllm.tokentrim")


class Settled(dict[str, Any]):
    """What was asked for, once it was checked; copies of the config, of which vLLM makes some for parts of the model,
    have it, too.
    """


def switch(config: Any) -> None:
    """Check what ``config.tokentrim`` asks for, and let the model be served by a class that does it.

    Args:
        config: transformers' config of the whole model, with all overrides; it is changed. What is done is not done
            again.

    Raises:
        TokentrimError: when what is asked for is malformed, or cannot be served; names the key or the strategy.
    """
    if isinstance(config.tokentrim, Settled):
        return
    architectures: list[str] = list(config.architectures or ())
    spec = of_server(config.tokentrim)
    family = PrunedFamily.of(config)
    text, served = require_servable(spec, family), SERVED[config.model_type]
    if architectures != [served.by]:
        raise UnsupportedError(
            complaint(f"the architecture of a {config.model_type} that tokentrim prunes inside vLLM", f"be {served.by}",
                      architectures, "another class of vLLM may do other things with pictures")
        )  # fmt: skip
    config.tokentrim = Settled(strategy=json.loads(text))
    config.architectures = [served.pruned]
    label = from_text(text).strategy.label()
    places = "keep theirs" if family.layout.mrope else "are counted without gaps (positions: renumber)"
    _LOG.info("tokentrim prunes every picture by %s; positions of what stays %s", label, places)
