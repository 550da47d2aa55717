"""The address of a server, taken before gigabytes are loaded."""

from __future__ import annotations

import socket

from tokentrim.errors import ConfigError, complaint


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        ConfigError: when the address is taken, or none of this machine.
    """
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as cause:
        raise ConfigError(
            complaint("--host and --port", "be a free address of this machine", f"{host}:{port}",
                      f"{cause}; --port 0 takes a free one")
        ) from cause  # fmt: skip
