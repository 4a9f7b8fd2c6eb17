"""Job IDs: 128 random bits, the partition, and a tag that tells an ID once given from one that never was.

    ID = base32(partition 2 bytes | random 16 bytes | owner 4 bytes, if there are tenants | tag 4 bytes), 36 or 42 characters

The tag is a keyed hash under a secret that the first process puts into Redis. A well-tagged ID that Redis no longer
knows has expired (410); any other was never given (404), and guessing one costs 128 bits. The owner is a keyed hash of the
tenant's name and the random bytes: it says nothing to people, and shows without asking Redis whether an ID is a tenant's own.
"""

import base64
import hashlib
import secrets
from collections.abc import Callable

from shared.errors import StoreUnavailable, UnknownJob
from shared.store import keys
from shared.store.connection import Connection

_TAG_BYTES = 4
_OWNER_BYTES = 4
_BODY_BYTES = 18
_LENGTHS = (36, 42)
_ALPHABET = "abcdefghijklmnopqrstuvwxyz234567"
_DIGITS = str.maketrans(_ALPHABET, "0123456789abcdefghijklmnopqrstuv")
"""Base32's letters -> Python's digits to base 32: `int` reads them ten times faster than the base64 module."""


class Ids:
    """Makes and checks job IDs."""

    def __init__(self, partitions: int, is_away: Callable[[int], bool] = lambda _partition: False) -> None:
        """`is_away` tells whether a partition's Redis did not answer a moment ago: others get the new jobs then."""
        self._partitions = partitions
        self._is_away = is_away
        self._secret = b""

    async def load(self, connection: Connection) -> None:
        """Fetch the secret, or make it if this is the first process of the mesh."""
        _, secret = await connection.run(("SET", keys.ID_SECRET, secrets.token_bytes(32), "NX"), ("GET", keys.ID_SECRET))
        self._secret = bytes(secret)

    @property
    def mesh(self) -> str:
        """A name of this mesh that no other has, and that tells nothing of the secret."""
        return hashlib.blake2b(digest_size=8, key=self._secret, person=b"mesh").hexdigest()

    def new(self, idempotency_key: str | None = None, tenant: str = "", beside: str = "") -> str:
        """A new ID of this tenant; with an idempotency key, in the partition where that key lives, else in that of `beside`.

        Raises:
            StoreUnavailable: the secret could not be fetched yet.
        """
        if not self._secret:
            raise StoreUnavailable("the store has not answered yet", retry_after_s=2)
        if beside:
            partition = self.partition(beside)
        elif idempotency_key is None:
            partition = self._any_partition()
        else:
            partition = _steady(idempotency_key, self._partitions)
        body = partition.to_bytes(2, "big") + secrets.token_bytes(16)
        if tenant:
            body += self._owner(body, tenant)
        return _text(body + self._tag(body))

    def check_owner(self, job_id: str, tenant: str) -> None:
        """See that an ID was given to this tenant.

        Raises:
            UnknownJob: it was not, or never given at all; which of the two is not told.
        """
        body = self._body(job_id)
        owner = body[_BODY_BYTES:]
        if not secrets.compare_digest(owner, self._owner(body[:_BODY_BYTES], tenant) if tenant else b""):
            raise UnknownJob("no job has this ID")

    def partition(self, job_id: str) -> int:
        """The partition that holds this job.

        Raises:
            UnknownJob: the ID was never given.
        """
        return int.from_bytes(self._body(job_id)[:2], "big")

    def _any_partition(self) -> int:
        if self._partitions == 1:
            return 0
        there = [partition for partition in range(self._partitions) if not self._is_away(partition)]
        return secrets.choice(there) if there else secrets.randbelow(self._partitions)

    def _body(self, job_id: str) -> bytes:
        raw = _raw(job_id)
        body, tag = raw[:-_TAG_BYTES], raw[-_TAG_BYTES:]
        if not secrets.compare_digest(tag, self._tag(body)):
            raise UnknownJob("no job has this ID")
        return body

    def _owner(self, body: bytes, tenant: str) -> bytes:
        return hashlib.blake2b(body + tenant.encode(), digest_size=_OWNER_BYTES, key=self._secret, person=b"owner").digest()

    def _tag(self, body: bytes) -> bytes:
        return hashlib.blake2b(body, digest_size=_TAG_BYTES, key=self._secret).digest()


def _steady(text: str, partitions: int) -> int:
    """One of the partitions by a text; with one partition more, only that one's share of the texts leads elsewhere.

    Jump consistent hash (Lamping and Veach, 2014, arXiv:1406.2294).
    """
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    found, following = 0, 0
    while following < partitions:
        found = following
        number = (number * 2862933555777941757 + 1) % (1 << 64)
        following = int((found + 1) * ((1 << 31) / ((number >> 33) + 1)))
    return found


def _text(raw: bytes) -> str:
    return base64.b32encode(raw).decode().rstrip("=").lower()


def _raw(text: str) -> bytes:
    """What `_text` was made from; nothing if it was made from nothing: there is one spelling only."""
    if len(text) not in _LENGTHS or text.strip(_ALPHABET):
        return b""
    bits = len(text) * 5
    spare = bits % 8
    number = int(text.translate(_DIGITS), 32)
    return b"" if number & ((1 << spare) - 1) else (number >> spare).to_bytes(bits // 8, "big")
