"""What settings must agree on with each other, and what this version doesn't have yet.

A setting that would be ignored is refused instead: nobody should believe in a limit or a lock that isn't there.
"""

from __future__ import annotations

import os
from pathlib import Path

from gateway.settings.tree import Limits, Who
from gateway.settings.whole import Settings

_LATER = "comes with a later version"


def broken_rule(settings: Settings) -> tuple[str, str] | None:
    """The first rule that is broken: the setting to name, and the rest of the sentence. None: all is well."""
    return _tls(settings) or _not_yet(settings) or _workers(settings) or _exposure(settings)


def _tls(settings: Settings) -> tuple[str, str] | None:
    cert, key = settings.serving.tls_cert, settings.serving.tls_key
    if (cert is None) != (key is None):
        given, missing = ("tls_cert", "TLS_KEY") if key is None else ("tls_key", "TLS_CERT")
        return given, f"TLS needs both files; set CONVOBASE_{missing} too."
    for name, path in (("tls_cert", cert), ("tls_key", key)):
        if path is not None and not _readable(path):
            return name, f"{path} is not a file that can be read; give the path of a PEM file."
    return None


def _readable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.R_OK)


def _not_yet(settings: Settings) -> tuple[str, str] | None:
    who, limits = settings.who, settings.limits
    if who.auth != "none":
        return "auth", f"authentication {_LATER}; give none, and serve on 127.0.0.1 only."
    plain_who, plain_limits = Who(), Limits()
    for name in ("jwt_secret", "jwks_url", "jwt_issuer", "jwt_audience", "jwt_leeway_s", "auth_timeout_s"):
        if getattr(who, name) != getattr(plain_who, name):
            return name, f"authentication {_LATER}, so this would have no effect; leave it out."
    for name in ("max_connections_per_user", "messages_per_minute", "tokens_per_day"):
        if getattr(limits, name) != getattr(plain_limits, name):
            return name, "limits per user come with a later version, so this would have no effect; leave it out."
    return None


def _workers(settings: Settings) -> tuple[str, str] | None:
    if settings.serving.workers == 1 or settings.log.log_url.startswith("redis"):
        return None
    engine = settings.log.log_url.partition(":")[0]
    return "workers", f"several workers need a log that they share; give LOG_URL redis://HOST, or 1 with {engine}:."


def _exposure(settings: Settings) -> tuple[str, str] | None:
    serving = settings.serving
    if serving.loopback or serving.insecure:
        return None
    return (
        "host",
        f"{serving.host} lets other machines in without authentication; give 127.0.0.1, or --insecure if you mean it.",
    )
