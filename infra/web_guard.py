"""Other pages in the same browser cannot use the chat's server, and its own page cannot reach others."""

import base64
import hashlib
import re

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class OwnPageOnly:
    """Answers 403 unless a request's Host is one of `hosts` and its Origin, if it has one, that host's page.

    A stranger's name can be made to lead to this machine (DNS rebinding); the Host then is that name.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            host, origin = headers.get("host"), headers.get("origin")
            if host not in self.hosts or origin not in (None, f"http://{host}"):
                reason = f"expected a request of the page http://{self.hosts[0]}"
                answer = JSONResponse({"error": reason}, 403)
                return await answer(scope, receive, send)
        await self.app(scope, receive, send)


def page_headers(page: str) -> dict[str, str]:
    """Headers with which a browser runs the script in a page and no other, and asks this server alone."""
    [script] = re.findall("<script>(.*?)</script>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest}'",
        "style-src": "'unsafe-inline'",
        "connect-src": "'self'",
        "img-src": "data:",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    policy = "; ".join(f"{what} {who}" for what, who in allowed.items())
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
