"""A Redis Cluster: which primary holds which key, and the way of commands there and of their answers back in order.

    commands ──by the slots of their keys──▶ primaries, at once ──▶ answers, in the order of the commands
                        ▲                        │
                        └── MOVED, ASK: there ───┘     a primary that is gone: ask the others who took its slots

The map of slots is asked for at the start, and again when an answer or a broken link says that it is old. What a link that
broke had been asked is not asked again here: nobody knows whether it was done. All scripts of a key's partition lie in one
slot, so order matters within a slot only, and is kept there.
"""

import asyncio
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from shared.store.server import Server

SLOTS = 16384
ROUNDS = 6
"""So often a command is sent on, until the cluster has made up its mind."""

AGAIN_S = 0.02
ASK_TIMEOUT_S = 1.0
REFRESH_LEAST_S = 0.2
AWAY_S = 2.0
"""A primary whose link broke, or a slot that is being moved, is not chosen for this long where another would do."""

_KEYLESS = frozenset({"PING", "TIME", "INFO", "PUBLISH", "SCRIPT", "CLUSTER"})
_KEY_IS_SECOND = frozenset({"XGROUP", "XINFO"})
_KEY_AFTER_STREAMS = frozenset({"XREAD", "XREADGROUP"})
_BROKEN = (RedisConnectionError, RedisTimeoutError, RuntimeError)
"""RuntimeError is uvloop's, of a connection that was cut a moment ago."""

log = structlog.get_logger()


def slot_of(key: str) -> int:
    """The slot of a key: of its hash tag, where it has one."""
    return key_slot(key.encode())


def key_of(command: Sequence[Any]) -> str | None:
    """The first key of a command that this store uses; the others are in its slot. `None` where there is none."""
    name = command[0]
    if name == "EVALSHA":
        return command[3]
    if name in _KEYLESS:
        return None
    if name in _KEY_IS_SECOND:
        return command[2]
    if name in _KEY_AFTER_STREAMS:
        return command[list(command).index("STREAMS") + 1]
    return command[1]


class Cluster:
    """The primaries. `prepare` is awaited before a server's first commands, and again when it has lost its scripts."""

    def __init__(self, seed: Server, prepare: Callable[[Server], Awaitable[None]]) -> None:
        self._seed = seed
        self._prepare = prepare
        self._servers: dict[tuple[str, int], Server] = {}
        """All that were ever named: one that has left may still be asked by somebody who does not know yet."""
        self._members: set[Server] = set()
        self._by_slot: list[Server | None] = [None] * SLOTS
        self._away_until_s: dict[Server | int, float] = {}
        self._is_stale = False
        self._asked_at_s = float("-inf")
        self._asking = asyncio.Lock()
        self._turn = 0

    @property
    def primaries(self) -> list[Server]:
        """All that hold slots, in the order of these."""
        return list(dict.fromkeys(server for server in self._by_slot if server is not None))

    def server_of(self, key: str) -> Server:
        """Who holds a key.

        Raises:
            redis.exceptions.ConnectionError: nobody does at present.
        """
        server = self._by_slot[slot_of(key)]
        if server is None:
            self._is_stale = True
            raise RedisConnectionError(f"no primary of the cluster holds the slot of {key}")
        return server

    def is_away(self, key: str) -> bool:
        """Whether the primary of this key did not answer a moment ago, or the key's slot is being moved."""
        slot = slot_of(key)
        server, now_s = self._by_slot[slot], time.monotonic()
        return server is None or max(self._away_until_s.get(server, 0.0), self._away_until_s.get(slot, 0.0)) > now_s

    def any_server(self) -> Server:
        """One that is well as far as is known; a different one each time."""
        self._turn += 1
        now_s = time.monotonic()
        well = [server for server in self.primaries if self._away_until_s.get(server, 0.0) <= now_s] or self.primaries
        return well[self._turn % len(well)] if well else self._seed

    # --- commands -------------------------------------------------------------------------------------------------

    async def send(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send commands and return their answers in order; Redis' errors are among them, not raised.

        Raises:
            redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: a primary gives no answer; the others did theirs.
        """
        answers: list[Any] = [None] * len(commands)
        left = list(range(len(commands)))
        for attempt in range(ROUNDS):
            if self._is_stale:
                await self.refresh()
            by_server: defaultdict[Server, list[int]] = defaultdict(list)
            for index in left:
                key = key_of(commands[index])
                by_server[self.any_server() if key is None else self.server_of(key)].append(index)
            asked = [self._ask(server, [commands[index] for index in part]) for server, part in by_server.items()]
            # All are waited for, even if one fails: what the others did must not go on behind the caller's back.
            found = [await asked[0]] if len(asked) == 1 else await asyncio.gather(*asked, return_exceptions=True)
            for part, each in zip(by_server.values(), found, strict=True):
                if isinstance(each, BaseException):
                    raise each
                for index, answer in zip(part, each, strict=True):
                    answers[index] = answer
            left = [index for index in left if await self._must_go_on(commands[index], answers, index)]
            if not left:
                return answers
            await asyncio.sleep(AGAIN_S * attempt)
        for index in left:
            self._away_until_s[slot_of(key_of(commands[index]) or "")] = time.monotonic() + AWAY_S
        return answers

    async def read(self, reader: str, wait_s: float, command: Sequence[Any]) -> Any:
        """Send one command that may block, on a link of its reader's own."""
        answers: list[Any] = [None]
        for attempt in range(ROUNDS):
            if self._is_stale:
                await self.refresh()
            key = key_of(command)
            server = self.any_server() if key is None else self.server_of(key)
            try:
                answers[0] = await server.read(reader, wait_s, command)
            except _BROKEN:
                self._broke(server)
                raise
            if not await self._must_go_on(command, answers, 0):
                break
            await asyncio.sleep(AGAIN_S * attempt)
        return answers[0]

    async def _ask(self, server: Server, commands: Sequence[Sequence[Any]]) -> list[Any]:
        try:
            if not server.has_scripts:
                await self._prepare(server)
            return await server.send(commands)
        except _BROKEN:
            self._broke(server)
            raise

    async def _must_go_on(self, command: Sequence[Any], answers: list[Any], index: int) -> bool:
        """Whether an answer says that the command was not done and is to be sent once more."""
        answer = answers[index]
        if not isinstance(answer, ResponseError):
            return False
        word, _, rest = str(answer).partition(" ")
        if isinstance(answer, NoScriptError):
            self.server_of(key_of(command) or "").has_scripts = False
            return True
        if word == "ASK":
            target = self._named(rest.split()[1])
            _, answers[index] = await self._ask(target, [("ASKING",), command])
            return str(answers[index]).startswith("TRYAGAIN") and isinstance(answers[index], ResponseError)
        if word == "MOVED":
            slot, address = rest.split()[:2]
            self._by_slot[int(slot)] = self._named(address)
        self._is_stale |= word in ("MOVED", "CLUSTERDOWN", "UNBLOCKED", "READONLY")
        return word in ("MOVED", "TRYAGAIN")

    # --- the map --------------------------------------------------------------------------------------------------

    async def refresh(self) -> None:
        """Ask for the map again, whoever answers first; at most a few times in a second.

        Raises:
            redis.exceptions.ConnectionError: nobody answers.
        """
        async with self._asking:
            if time.monotonic() - self._asked_at_s < REFRESH_LEAST_S:
                return
            now_s = time.monotonic()
            known = [*self._servers.values(), self._seed]
            random.shuffle(known)
            known.sort(key=lambda server: (server not in self._members, self._away_until_s.get(server, 0.0) > now_s))
            for server in known:
                try:
                    (answer,) = await server.send([("CLUSTER", "SLOTS")], ASK_TIMEOUT_S)
                except _BROKEN:
                    self._away_until_s[server] = time.monotonic() + AWAY_S
                    continue
                if not isinstance(answer, Exception):
                    self._asked_at_s = time.monotonic()
                    self.learn(answer, server)
                    return
            raise RedisConnectionError("no server of the cluster answers")

    def learn(self, rows: Sequence[Any], teller: Server) -> None:
        """Take the map as CLUSTER SLOTS tells it: first and last slot, primary, replicas."""
        before = self.primaries
        self._by_slot = [None] * SLOTS
        seen: set[Server] = set()
        for first, last, *nodes in rows:
            servers = [self._server(_host(node[0]) or teller.host, int(node[1])) for node in nodes]
            seen.update(servers)
            self._by_slot[int(first) : int(last) + 1] = [servers[0]] * (int(last) - int(first) + 1)
        self._is_stale = False
        for server in self._members - seen:
            server.close()
        self._members = seen
        if before != self.primaries:
            log.info("store.cluster", primaries=[server.address for server in self.primaries])

    def close(self) -> None:
        """Close all links."""
        for server in self._servers.values():
            server.close()

    def _broke(self, server: Server) -> None:
        self._away_until_s[server] = time.monotonic() + AWAY_S
        self._is_stale = True

    def _named(self, address: str) -> Server:
        host, _, port = address.rpartition(":")
        return self._server(host or self._seed.host, int(port))

    def _server(self, host: str, port: int) -> Server:
        return self._servers.get((host, port)) or self._servers.setdefault((host, port), self._seed.neighbour(host, port))


def _host(raw: bytes | None) -> str:
    """Where a node says that it is; empty where it does not know, which means: where you found me."""
    host = bytes(raw or b"").decode()
    return "" if host == "?" else host
