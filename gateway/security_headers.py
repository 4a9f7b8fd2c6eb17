"""Headers that tell browsers and caches how careful to be with an answer. What a route set itself stays."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

ALWAYS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),  # results are their owner's
)

POLICY = b"content-security-policy"
DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"
OF_DATA = (*ALWAYS, (POLICY, DATA_POLICY))
PAGE_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    b"media-src 'self' blob:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Pages load nothing from elsewhere; their scripts may be inline, for they show no text that others wrote as HTML."""


class SecurityHeadersMiddleware:
    """Plain ASGI middleware around everything, so that refusals carry them as well."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                # On the raw list, for this is done to every answer: names are lower-case there (ASGI 3.0).
                given = dict(message["headers"])
                is_page = given.get(b"content-type", b"").startswith(b"text/html")
                wanted = (*ALWAYS, (POLICY, PAGE_POLICY)) if is_page else OF_DATA
                message["headers"] = [*message["headers"], *[header for header in wanted if header[0] not in given]]
            await send(message)

        await self.app(scope, receive, send_with_headers)
