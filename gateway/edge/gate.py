"""Which websites and host names may talk to this gateway (SPEC.md section 3).

A page from anywhere can make a browser send requests to localhost, and a DNS name that is rebound to 127.0.0.1
makes them look same-origin. So the Origin of every request is compared with its Host, and on a gateway without
authentication the Host has to be one that can't be rebound.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from protocol.codes import ErrorCode, Refusal


@dataclass(frozen=True)
class Gate:
    """`allowed_origins`: as in the setting, in lower case. `any_host`: whoever gets in has credentials that a
    rebound page can't have, so the Host needs no check."""

    allowed_origins: tuple[str, ...]
    any_host: bool

    def check(self, host: str | None, origin: str | None) -> None:
        """Raises `Refusal` (`FORBIDDEN_ORIGIN`)."""
        if not self.any_host and not self._host_is_ours(host):
            raise Refusal(
                ErrorCode.FORBIDDEN_ORIGIN,
                f"This gateway isn't served as {_short(host)}. Use localhost, or name the address in ALLOWED_ORIGINS.",
            )
        if origin is None or self.allows(origin) or _same_origin(origin, host):
            return
        raise Refusal(
            ErrorCode.FORBIDDEN_ORIGIN,
            f"Pages of {_short(origin)} may not use this gateway. Name that origin in ALLOWED_ORIGINS to allow it.",
        )

    def allows(self, origin: str) -> bool:
        return origin.lower() in self.allowed_origins

    def _host_is_ours(self, host: str | None) -> bool:
        if host is None:
            return True  # HTTP/1.0 without Host: no browser does that
        name = _hostname(f"//{host}")
        if name is None:
            return False
        if name == "localhost" or name.endswith(".localhost") or _is_address(name):
            return True
        return any(_hostname(allowed) == name for allowed in self.allowed_origins)


def _is_address(name: str) -> bool:
    """An address can't be rebound, a name can."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _hostname(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _same_origin(origin: str, host: str | None) -> bool:
    """The scheme isn't compared: behind a proxy that ends TLS we don't see it."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and host is not None and parts.netloc.lower() == host.lower()


def _short(text: str | None) -> str:
    return repr((text or "")[:100])
