"""The servers that `visionmesh doctor` looks at: a Redis and a Triton of one's own, and a mesh that runs."""

import asyncio
import email.utils
import os
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx

from deploy.local import ports
from shared.errors import InferenceUnavailable, StoreUnavailable
from shared.models import Registry
from shared.settings import Settings
from shared.store import checkup
from visionmesh.commands.findings import Finding

MOST_SKEW_S = 1.0
MESH_TIMEOUT_S = 5.0


def of_ones_own(settings: Settings, registry: Registry) -> Iterator[Finding]:
    """Redis and Triton, where the environment names them; those that the mesh starts itself need no check."""
    if os.environ.get("MESH_REDIS_URL"):
        yield from _redis(settings)
    if os.environ.get("MESH_TRITON_URL"):
        yield from _triton(settings, registry)


def _redis(settings: Settings) -> Iterator[Finding]:
    place = urlsplit(settings.redis_url).netloc.rpartition("@")[2] or settings.redis_url  # no password on the screen
    try:
        seen = checkup.look(settings)
    except StoreUnavailable as error:
        yield Finding(f"Redis at {place} does not answer: {error}", "check MESH_REDIS_URL, and that the server runs")
        return
    if not seen.is_cluster:
        yield Finding(f"Redis at {place} answers")
        yield from _configured("Redis", seen.each[0])
        return
    yield Finding(f"Redis at {place} answers, a cluster of {len(seen.each)} primaries")
    yield from _spread(seen, settings)
    for primary in seen.each:
        yield from _configured(f"Redis at {primary.address}", primary)


def _configured(name: str, seen: checkup.Checkup) -> Iterator[Finding]:
    yield Finding(
        f"{name} evicts by {seen.eviction}",
        ""
        if seen.eviction == "noeviction"
        else "it would throw jobs away when full; in redis.conf: maxmemory-policy noeviction",
    )
    yield Finding(
        f"{name} {'has an' if seen.has_append_only_file else 'has no'} append-only file",
        "" if seen.has_append_only_file else "its restart would lose jobs; in redis.conf: appendonly yes, appendfsync always",
    )
    yield Finding(
        f"{name} may take {seen.maxmemory_bytes / 1024**2:.0f} MiB" if seen.maxmemory_bytes else f"{name} has no memory limit",
        "" if seen.maxmemory_bytes else "it would take the whole machine; in redis.conf, for example: maxmemory 2gb",
    )
    yield _clock(name, seen.skew_s)


def _spread(seen: checkup.Look, settings: Settings) -> Iterator[Finding]:
    """How the partitions lie on a cluster's primaries, and whether webhooks have a Redis that is none."""
    for primary in seen.each:
        held = ", ".join(str(partition) for partition in primary.partitions)
        if held:
            yield Finding(f"Redis at {primary.address} holds {'partitions' if ',' in held else 'partition'} {held}")
        else:
            mend = "it does nothing for the mesh; raise MESH_PARTITIONS, or move the slot of a partition there"
            yield Finding(f"Redis at {primary.address} holds no partition", mend, is_note=True)
    if seen.homeless:
        which = ", ".join(str(partition) for partition in seen.homeless)
        yield Finding(f"no primary holds partition {which}", "give the missing slots to a primary: `--cluster fix`")
    if settings.webhook_secret and not settings.tasks_redis_url:
        mend = "set MESH_TASKS_REDIS_URL to a Redis that is no cluster: arq, which delivers webhooks, knows none"
        yield Finding("webhooks have no Redis for their queue", mend)


def _triton(settings: Settings, registry: Registry) -> Iterator[Finding]:
    try:
        from inference_worker import triton
    except ModuleNotFoundError as error:
        yield Finding("Triton cannot be asked", f"the package {error.name} is missing: pip install 'visionmesh[inference]'")
        return
    wanted = {
        model.triton_model: name
        for name, model in registry.models.items()
        if model.track != "A" and name not in registry.unloaded
    }
    try:
        missing = asyncio.run(triton.unready(settings.triton_url, settings.triton_ca, list(wanted)))
    except InferenceUnavailable as error:
        mend = f"check MESH_TRITON_URL={settings.triton_url}: HOST:PORT of Triton's gRPC, usually port 8001"
        yield Finding(f"Triton at {settings.triton_url} does not answer: {error}", mend)
        return
    yield Finding(f"Triton at {settings.triton_url} answers, {len(wanted) - len(missing)} of {len(wanted)} models ready")
    for name in missing:
        mend = f"put {name} into Triton's model repository and load it, or take {wanted[name]} out of the registry"
        yield Finding(f"Triton has no model {name} ready, which the registry names for {wanted[name]}", mend)


def mesh_or_port(settings: Settings) -> Iterator[Finding]:
    """A mesh that runs where VISIONMESH_URL says, or at MESH_PORT; if none is there, whether one could listen."""
    named = os.environ.get("VISIONMESH_URL", "").rstrip("/")
    host = "127.0.0.1" if settings.host in ("0.0.0.0", "::") else settings.host  # noqa: S104 - compared, not bound
    own = f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"
    seen = list(_mesh(named or own))
    yield from seen
    if named and not seen:
        yield Finding(f"no mesh answers at {named}", "check VISIONMESH_URL, or unset it and start a mesh with `visionmesh up`")
    if seen and named in ("", own):
        return
    places = {"MESH_PORT": (settings.host, settings.port), "MESH_METRICS_PORT": (settings.metrics_host, settings.metrics_port)}
    for setting, (host, port) in places.items():
        if port:
            free = ports.is_free(port, host)
            mend = f"stop what listens there, or set {setting} to another port (now {port})"
            yield Finding(f"port {port} on {host} is {'free' if free else 'taken'}", "" if free else mend)


def _mesh(url: str) -> Iterator[Finding]:
    """What a mesh at this address says; nothing if there is none."""
    try:
        before_s = time.time()
        answer = httpx.get(f"{url}/readyz", timeout=MESH_TIMEOUT_S, headers={"accept": "application/json"})
        after_s = time.time()
        said = answer.json()
        checks: dict[str, bool] = said["checks"]
        is_ready = bool(said["ready"])
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return
    lacking = ", ".join(name for name, holds in checks.items() if not holds)
    if is_ready:
        yield Finding(f"a mesh runs at {url} and is ready")
    else:
        mend = f"see `visionmesh status {url}`, and the log of what is missing"
        yield Finding(f"a mesh runs at {url} but is not ready: {lacking} missing", mend)
    date = answer.headers.get("date")
    if date:
        # The header has whole seconds: the clock that wrote it was anywhere within one.
        said_s = email.utils.parsedate_to_datetime(date).timestamp()
        yield _clock("the mesh", max(said_s - after_s, 0.0) or min(said_s + 1 - before_s, 0.0))


def _clock(whose: str, skew_s: float) -> Finding:
    if abs(skew_s) <= MOST_SKEW_S:
        return Finding(f"the clocks here and of {whose} agree")
    text = f"the clock of {whose} is {abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} this machine's"
    return Finding(text, "set both by NTP, for example: timedatectl set-ntp true")
