"""Every hook that a plugin may implement.

A plugin is a module that an entry point of the group ``tokentrim`` names. It implements any of these functions, marked
with ``@tokentrim.hookimpl``, and calls ``register`` once per name. Registering imports nothing: a target is written as
text, ``"package.module:Attribute"``, and is imported when somebody asks for the name.
"""

from __future__ import annotations

from typing import Final, Protocol

import pluggy

PROJECT: Final = "tokentrim"

hookspec: Final = pluggy.HookspecMarker(PROJECT)
hookimpl: Final = pluggy.HookimplMarker(PROJECT)


class Register(Protocol):
    """What a hook is given: ``register(name, target, **tags)``."""

    def __call__(self, name: str, target: object, **tags: object) -> None:
        """Register under ``name`` an object or lazy text: ``"module:Attribute"`` or ``"module:MAPPING[key]"``.

        Tags, such as ``summary="one line"``, are read without an import; ``family=True`` marks a ``tokentrim.Family``.
        """


@hookspec
def tokentrim_strategies(register: Register) -> None:
    """Register strategies: classes derived from ``tokentrim.Strategy``, each under its own ``name``."""


@hookspec
def tokentrim_adapters(register: Register) -> None:
    """Register adapters: classes derived from ``tokentrim.Adapter``; tag them with ``model_types=(...)``."""


@hookspec
def tokentrim_tasks(register: Register) -> None:
    """Register tasks that a comparison can run: questions with known answers."""


@hookspec
def tokentrim_executors(register: Register) -> None:
    """Register executors: classes derived from ``tokentrim.executors.Executor``; they run a comparison's cells."""


@hookspec
def tokentrim_models(register: Register) -> None:
    """Register models by name: functions of no argument that return the model's folder as a ``Path``."""
