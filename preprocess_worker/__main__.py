"""`python -m preprocess_worker`: one preprocess worker, until SIGTERM or SIGINT."""

import asyncio
import sys

import uvloop

from preprocess_worker import worker
from preprocess_worker.decoder import DecoderGone
from shared import log, service, tracing
from shared.models import RegistryError
from shared.settings import SettingsError, read


def main() -> int:
    """Read the settings and work; returns the exit code."""
    try:
        settings = read()
        log.configure(settings, "preprocess_worker")
        tracing.configure("preprocess_worker")
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(service.serve(settings, worker.run))
    except (SettingsError, RegistryError) as error:
        print(f"preprocess_worker: {error}", file=sys.stderr)  # noqa: T201 - the one line for a person who started us by hand
        return 2
    except DecoderGone as error:
        print(f"preprocess_worker: {error}", file=sys.stderr)  # noqa: T201 - as above
        return 1
    finally:
        tracing.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
