"""A severe environment for every test: no network, fixed seeds, deterministic kernels, one thread, built-ins alone."""

import gc
import os
import random
import socket
from functools import partial

# Before anything imports huggingface_hub, which reads them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# What a developer has installed beside tokentrim must not change what is tested.
os.environ["TOKENTRIM_PLUGINS"] = ""

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

# The same examples in every run: a fault that only some runs find is found by none that looks for it.
settings.register_profile("tokentrim", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("tokentrim")

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_connect = socket.socket.connect


def _connect_at_home_only(self, address):
    """Workers on this machine may talk to each other; nothing else may be reached."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOOPBACK:
        raise OSError(f"tests must not use the network; got a connection to {address!r}")
    return _connect(self, address)


@pytest.fixture(autouse=True, scope="module")
def settled():
    """What imports have made stays: a collection, of which benches make many, need not walk through it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_network():
    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", _connect_at_home_only)
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def seeds():
    random.seed(0)
    np.random.seed(0)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(0)
    torch.default_generator.manual_seed(0)  # torch.manual_seed notes a stack for every accelerator that never came up


@pytest.fixture
def graphs_alone(monkeypatch):
    """``torch.compile`` captures graphs and runs them as they are: kernels would take it minutes, and are torch's."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
