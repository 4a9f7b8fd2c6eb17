"""Structured logs on standard error: JSON lines for machines, or a console form for people (`MESH_LOG_FORMAT`)."""

import logging
import sys

import structlog

from shared import tracing
from shared.messages import Ticket
from shared.settings import Settings


def configure(settings: Settings, service: str) -> None:
    """Set up logging of this process; `service` names it in every line."""
    renderer = structlog.processors.JSONRenderer() if settings.log_format == "json" else structlog.dev.ConsoleRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[settings.log_level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service)


def who(ticket: Ticket) -> dict[str, str]:
    """The names of a job and its trace in a line."""
    return {"job_id": ticket.id, "trace_id": tracing.trace_id(ticket.traceparent)}


def about(ticket: Ticket) -> None:
    """Name a job and its trace in every line of this task from now on."""
    structlog.contextvars.bind_contextvars(**who(ticket))
