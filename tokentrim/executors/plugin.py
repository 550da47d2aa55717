"""The executors that come along, registered like a stranger's."""

from tokentrim.hookspecs import Register, hookimpl


@hookimpl
def tokentrim_executors(register: Register) -> None:
    """Register them; neither target is imported before it is asked for, and ray only when it is used."""
    register("local", "tokentrim.executors.local:LocalExecutor", summary="this process, or several on this machine")
    register("ray", "tokentrim.executors.on_ray:RayExecutor", summary="workers on any number of machines, by Ray")
