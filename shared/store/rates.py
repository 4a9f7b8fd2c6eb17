"""How many requests a tenant may make in a second: a token bucket in Redis, the same for all gateway processes."""

import math

from shared.access import Tenant
from shared.errors import TooManyRequests
from shared.store import keys
from shared.store.connection import Connection


class Rates:
    """The buckets."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def take(self, tenant: Tenant) -> None:
        """Count one request of a tenant that has a rate.

        Raises:
            TooManyRequests: its bucket is empty; `retry_after_s` says when it no longer is.
            StoreUnavailable: Redis does not answer.
        """
        if not tenant.rate_per_s:
            return
        most = tenant.burst or math.ceil(tenant.rate_per_s)
        call = self._connection.call("take_token", [keys.rate(tenant.name)], tenant.rate_per_s, most)
        wait_ms = int((await self._connection.run(call))[0])
        if wait_ms:
            raise TooManyRequests(
                f"more than {tenant.rate_per_s:g} requests a second", retry_after_s=max(math.ceil(wait_ms / 1000), 1)
            )
