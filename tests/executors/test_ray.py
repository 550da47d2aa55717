"""The executor ``ray`` on a cluster of two machines, both of them this one: two raylets with a core each."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec

import pytest

from tests import warm
from tests.executors.small import CELLS, contents, heads
from tokentrim.errors import UnsupportedError
from tokentrim.executors import on_ray

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra 'ray')")

# A process of its own, so that Ray's threads, warnings and exit handlers stay out of the tests'.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster()
for _ in range(2):
    cluster.add_node(num_cpus=1, object_store_memory=80 << 20, include_dashboard=False, node_ip_address="127.0.0.1",
                     temp_dir=sys.argv[1])
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


# Ray replaces 127.0.0.1 by the machine's own address, where nothing listens here, unless told that no machine is far.
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
PATIENT = {"RAY_agent_register_timeout_ms": "300000", "RAY_raylet_start_wait_time_s": "300"}


def left_of(session):
    """Processes of a session of the system."""
    listed = subprocess.run(["ps", "-eo", "sid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.split()[0] == str(session)]


@pytest.fixture(scope="module")
def cluster(shaky):
    # Not pytest's own folder: the names of Ray's sockets there would be too long for the system.
    folder = tempfile.mkdtemp(prefix="ray-")
    # Ray's cluster notes its address in a folder that it takes for granted.
    os.mkdir(os.path.join(folder, "ray"))
    process = subprocess.Popen(
        [sys.executable, "-c", CLUSTER, folder],
        env={**shaky.environment(), **LOOPBACK, **PATIENT, "RAY_TMPDIR": folder},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    )  # fmt: skip
    address = process.stdout.readline().strip()
    assert address.startswith("127.0.0.1:")
    yield address
    process.communicate("", timeout=120)
    deadline = time.monotonic() + 60
    while left_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert left_of(process.pid) == []
    shutil.rmtree(folder)


@needs_ray
@pytest.mark.slow
def test_two_machines_give_the_same_results_though_a_worker_is_killed(shaky, alone, cluster, tmp_path):
    shaky.order("kill")
    command = shaky.command(tmp_path, "--executor", "ray", "--executor-option", f"address={cluster}")
    done = warm.run(command, env=shaky.environment() | LOOPBACK, timeout=540)
    assert done.returncode == 0, done.stderr[-3000:]
    assert contents(tmp_path) == contents(alone)
    assert done.stdout.count("lost: ") == 1
    assert done.stdout.index(f"1/{CELLS} cells") < done.stdout.index("lost: "), "each cell is stored as it is there"
    assert "it is run again, attempt 2 of 3" in done.stdout
    assert not any(head["timed_alone"] for head in heads(tmp_path))


class Cluster:
    """What the executor asks of Ray's machines."""

    def __init__(self, *machines):
        self.machines = machines

    def nodes(self):
        return [{"Alive": True, "Resources": machine} for machine in self.machines]


def test_there_are_as_many_workers_as_the_machines_hold():
    machines = Cluster({"CPU": 8.0, "GPU": 2.0}, {"CPU": 3.0, "GPU": 4.0}, {"CPU": 16.0})
    assert on_ray._room(machines, {"CPU": 1, "GPU": 1}) == 5
    assert on_ray._room(machines, {"CPU": 4, "GPU": 0.0}) == 6
    with pytest.raises(UnsupportedError, match="have 1 CPU and 8 GPU for a worker"):
        on_ray._room(machines, {"CPU": 1, "GPU": 8})


class Elsewhere:
    """A Ray that finds no cluster, and remembers where it looked."""

    def __init__(self):
        self.looked = []

    def is_initialized(self):
        return False

    def init(self, *, address, **more):
        self.looked.append(address)
        if address != "local":
            raise ConnectionError(f"nothing answers at {address}")

    def shutdown(self):
        self.looked.append("no more")


def test_a_cluster_is_started_where_none_is_named(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = Elsewhere()
    with on_ray.connected(ray, None):
        assert ray.looked == ["auto", "local"]
    assert ray.looked[-1] == "no more"
    with pytest.raises(UnsupportedError, match="answer at far:1"), on_ray.connected(ray, "far:1"):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "far:2")
    with pytest.raises(UnsupportedError, match="answer at far:2"), on_ray.connected(ray, None):
        pass


def test_messages_of_ray_are_cut_to_what_they_say():
    said = "The actor died.\n\tclass_name: Worker\n\tactor_id: 12\nIts process has died."
    assert on_ray._short(RuntimeError(said)) == "The actor died. Its process has died."
