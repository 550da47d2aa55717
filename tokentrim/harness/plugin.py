"""lmms-eval's tasks, registered as a family: looked up when one is asked for, so that nothing is imported before."""

from tokentrim.hookspecs import Register, hookimpl


@hookimpl
def tokentrim_tasks(register: Register) -> None:
    """Register ``lmms:NAME``."""
    register(
        "lmms",
        "tokentrim.harness.tasks:LMMS",
        family=True,
        summary="a task of lmms-eval, by its name or YAML file, such as lmms:gqa; needs the extra lmms",
    )
