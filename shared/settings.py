"""Settings, read once at start from the environment, loudly.

Every variable begins with `MESH_`; the name after it is a field of `Settings` in capitals. An unknown variable, a value of
the wrong type or out of range is a `SettingsError` whose one line names the variable and how to mend it.
"""

import base64
import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=1, le=65535)]
Seconds = Annotated[float, Meta(gt=0, le=7 * 86400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
CountOrAuto = Annotated[int, Meta(ge=0, le=1024)]
Bytes = Annotated[int, Meta(ge=1024, le=1 << 40)]

PREFIX = "MESH_"


class SettingsError(Exception):
    """A setting is wrong. The message is one line that names the variable."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings of all services with their defaults. Units are in the names."""

    # where things are
    redis_url: str = "redis://127.0.0.1:6379/0"
    triton_url: str = "127.0.0.1:8001"
    host: str = "127.0.0.1"
    port: Port = 9600
    models: str = ""
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0
    api_keys: str = ""
    redis_ca: str = ""
    tasks_redis_url: str = ""
    triton_ca: str = ""
    triton_control_key: str = ""

    # what is accepted
    default_model: str = "small"
    max_upload_bytes: Bytes = 50 * 1024 * 1024
    max_pixels: Count | Annotated[int, Meta(ge=1, le=1 << 40)] = 50_000_000
    max_side: Count = 16_384
    max_batch_pictures: Count = 1000
    max_batch_bytes: Bytes = 1024 * 1024 * 1024
    batch_timeout_s: Seconds = 600.0
    formats: str = "jpeg,png,webp,gif"
    upload_chunk_bytes: Bytes = 256 * 1024
    upload_folder: str = ""
    body_timeout_s: Seconds = 60.0
    byte_budget: Annotated[int, Meta(ge=0)] = 0
    max_queue_s: Seconds = 20.0

    # how long things take and are kept
    job_deadline_s: Seconds = 120.0
    result_ttl_s: Seconds = 3600.0
    keep_uploads: bool = False
    max_wait_s: Seconds = 30.0
    lease_s: Seconds = 10.0
    heartbeat_s: Seconds = 2.0
    dead_letter_ttl_s: Seconds = 86_400.0
    dead_letters: Count = 100
    slow_request_ms: Annotated[float, Meta(ge=0)] = 100.0
    slow_stage_ms: Annotated[float, Meta(ge=0)] = 1000.0

    # webhooks
    webhook_secret: str = ""
    webhook_private_hosts: str = ""
    webhook_tries: Annotated[int, Meta(ge=1, le=20)] = 8
    webhook_retry_s: Seconds = 5.0
    webhook_timeout_s: Annotated[float, Meta(gt=0, le=60)] = 15.0

    # processes
    gateway_workers: Count = 1
    gateway_worker_lifetime_s: Annotated[int, Meta(ge=60)] = 6 * 3600
    gateway_worker_max_rss_mb: Annotated[int, Meta(ge=64)] = 512
    worker_lifetime_s: Annotated[int, Meta(ge=0, le=30 * 86400)] = 6 * 3600
    worker_max_rss_mb: Annotated[int, Meta(ge=0)] = 4096
    shutdown_s: Annotated[int, Meta(ge=1, le=3600)] = 30
    decoders: CountOrAuto = 0
    decode_timeout_s: Seconds = 5.0
    max_waiting_tensors: Count = 256
    inference_slots: Count = 2
    inference_linger_ms: Annotated[float, Meta(ge=0, le=1000)] = 60.0
    triton_clients: Count = 32
    torch_device: str = "auto"

    # the store
    tensor_store: Literal["auto", "redis", "shm"] = "auto"
    partitions: Annotated[int, Meta(ge=1, le=1024)] = 1
    event_encoding: Literal["msgpack", "json"] = "msgpack"
    results_stream_length: Count = 10_000

    # logs
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"


def read(environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check the settings.

    Raises:
        SettingsError: a `MESH_` variable is unknown or its value is wrong.
    """
    given = {
        name.removeprefix(PREFIX).lower(): value
        for name, value in (os.environ if environ is None else environ).items()
        if name.startswith(PREFIX) and value != ""
    }
    known = get_type_hints(Settings, include_extras=True)
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else "; docs/configuration.md lists them all"
            raise SettingsError(f"{PREFIX}{name.upper()} is not a setting{hint}")
    values: dict[str, object] = {}
    for name, value in given.items():
        try:
            values[name] = msgspec.convert(value, known[name], strict=False)
        except msgspec.ValidationError as error:
            raise SettingsError(f"{PREFIX}{name.upper()}={value!r} is wrong: {error}") from None
    settings = msgspec.convert(values, Settings)
    unknown = set(settings.formats.split(",")) - {"jpeg", "png", "webp", "gif", "tiff", "heif", "avif"}
    if unknown:
        raise SettingsError(f"{PREFIX}FORMATS names {', '.join(sorted(unknown))!s}; known: jpeg png webp gif tiff heif avif")
    if not all(_is_webhook_secret(secret) for secret in settings.webhook_secret.split()):
        raise SettingsError(f"{PREFIX}WEBHOOK_SECRET must be whsec_ and 24 to 64 random bytes in base64")
    for name in ("redis_url", "tasks_redis_url"):
        url = getattr(settings, name)
        if not url.startswith(("redis://", "rediss://", "unix://")) and (url or name == "redis_url"):
            raise SettingsError(f"{PREFIX}{name.upper()} must begin with redis://, rediss:// or unix://, not {url!r}")
    if "://" in settings.triton_url and not settings.triton_url.startswith("grpcs://"):
        raise SettingsError(f"{PREFIX}TRITON_URL must be HOST:PORT, or grpcs://HOST:PORT for TLS, not {settings.triton_url!r}")
    for name in ("redis_ca", "triton_ca"):
        if (path := getattr(settings, name)) and not Path(path).is_file():
            raise SettingsError(f"{PREFIX}{name.upper()}={path!r} is no file; it must hold certificates in PEM")
    return settings


def _is_webhook_secret(text: str) -> bool:
    try:
        return text.startswith("whsec_") and 24 <= len(base64.b64decode(text.removeprefix("whsec_"), validate=True)) <= 64
    except ValueError:
        return False
