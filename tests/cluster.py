"""A Redis Cluster of Valkeys on this machine: primaries with a share of the slots each, and replicas if wanted."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import redis
from redis.crc import key_slot

from deploy.local import ports
from deploy.local.valkey import Valkey

SLOTS = 16384
READY_S = 20.0


class Nodes:
    """The servers, primaries first. `run` runs a coroutine where the servers were started."""

    def __init__(self, folder: Path, run, primaries: int = 3, replicas: int = 0) -> None:
        self.primaries = primaries
        self._run = run
        self.servers = [self._server(folder / f"node-{number}") for number in range(primaries + replicas)]

    @staticmethod
    def _server(folder: Path) -> Valkey:
        folder.mkdir(parents=True)
        options = {"cluster-enabled": "yes", "cluster-port": str(ports.free()), "cluster-node-timeout": "1000"}
        # The partitions of the other primaries go on while one is away.
        options |= {"cluster-require-full-coverage": "no", "maxmemory": "256mb", "repl-diskless-sync-delay": "0"}
        return Valkey(folder, ports.free(), options)

    @property
    def url(self) -> str:
        """The first node: any will do."""
        return self.servers[0].url

    def start(self) -> None:
        """Start and join them; returns once each knows all slots."""
        for server in self.servers:
            self._run(server.start())
        deadline_s = time.monotonic() + READY_S
        for server in self.servers:
            while not self._run(server.ready()):
                assert time.monotonic() < deadline_s, server.last_line()
                time.sleep(0.01)
        first = self.servers[0]
        share = SLOTS // self.primaries
        for number, server in enumerate(self.servers):
            with self.client(server) as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number < self.primaries:
                    last = SLOTS - 1 if number == self.primaries - 1 else (number + 1) * share - 1
                    client.execute_command("CLUSTER ADDSLOTSRANGE", number * share, last)
                if number:
                    with self.client(first) as inviting:
                        bus = int(inviting.config_get("cluster-port")["cluster-port"])
                    client.execute_command("CLUSTER MEET", "127.0.0.1", first.port, bus)
        self.until(lambda client: len(client.execute_command("CLUSTER NODES")) == len(self.servers))
        for number, server in enumerate(self.servers[self.primaries :]):
            with self.client(server) as client, self.client(self.servers[number]) as primary:
                client.execute_command("CLUSTER REPLICATE", primary.execute_command("CLUSTER MYID").decode())
        self.until(lambda client: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok")
        self.until(lambda client: len(client.execute_command("CLUSTER SLOTS")) == self.primaries)

    def until(self, holds) -> None:
        """Wait until something holds at every node."""
        deadline_s = time.monotonic() + READY_S
        for server in self.servers:
            with self.client(server) as client:
                while not holds(client):
                    assert time.monotonic() < deadline_s, "the cluster does not become one"
                    time.sleep(0.01)

    @contextlib.contextmanager
    def client(self, server: Valkey) -> Iterator[redis.Redis]:
        """A client of one node."""
        with contextlib.closing(redis.Redis.from_url(server.url)) as client:
            yield client

    def flush(self) -> None:
        """Empty all primaries."""
        for server in self.servers[: self.primaries]:
            with self.client(server) as client:
                client.flushall()

    def primary_of(self, key: str) -> Valkey:
        """The server that holds a key."""
        slot = key_slot(key.encode())
        with self.client(self.servers[-1]) as client:
            rows = client.execute_command("CLUSTER SLOTS")
        port = next(row[2][1] for row in rows if row[0] <= slot <= row[1])
        return next(server for server in self.servers if server.port == port)

    @contextlib.contextmanager
    def moving(self, key: str, to: Valkey) -> Iterator[None]:
        """Move the slot of a key. In the block it is under way: half of its keys are here, half there, as in a resharding."""
        slot, source = key_slot(key.encode()), self.primary_of(key)
        with self.client(source) as here, self.client(to) as there:
            ids = {client: client.execute_command("CLUSTER MYID").decode() for client in (here, there)}
            there.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[here])
            here.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[there])
            names = here.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000)
            self._migrate(here, to, names[: len(names) // 2])
            yield
            while names := here.execute_command("CLUSTER GETKEYSINSLOT", slot, 1000):
                self._migrate(here, to, names)
            for client in (there, here):
                client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[there])

    @staticmethod
    def _migrate(here: redis.Redis, to: Valkey, names: list[bytes]) -> None:
        if names:
            here.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *names)

    def stop(self) -> None:
        """Stop them."""
        for server in self.servers:
            self._run(server.stop(5))
