"""Reads the URL of a Redis or Valkey server, of several, of a cluster, or of the Sentinels that know it.

    redis://[user:password@]host[:port][,host[:port]…][/database][?option=value&…]      rediss:// with TLS
    redis+sentinel://[user:password@]sentinel[:port][,…]/name-of-the-primary[/database][?…]   rediss+sentinel://

Of several hosts the one that is the primary is used; or they are some nodes of a cluster, which is found out by asking.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from msgspec import Struct

SCHEMES = {"redis": (False, False), "rediss": (True, False)} | {
    "redis+sentinel": (False, True),
    "rediss+sentinel": (True, True),
}
"""Whether they mean TLS, and Sentinels."""
DEFAULT_PREFIX = "convobase"
CONNECT_S = 2.0
COMMAND_S = 5.0

_PORT, _SENTINEL_PORT = 6379, 26379
_TLS_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class RedisUrl(Struct, frozen=True):
    """What a URL says."""

    addresses: tuple[Address, ...]
    sentinel_of: str | None
    """The Sentinels' name for the primary; then `addresses` are those of Sentinels."""
    database: int
    username: str | None
    password: str | None
    prefix: str
    """Of every key and channel. Channels belong to no database: gateways that share a server need one each."""
    connect_s: float
    command_s: float
    tls: Mapping[str, Any] | None
    """redis-py's arguments for an `SSLConnection`; None: no TLS."""
    sentinel_username: str | None
    sentinel_password: str | None

    def __str__(self) -> str:
        """For people: without credentials."""
        hosts = ",".join(map(str, self.addresses))
        return f"Sentinel {self.sentinel_of} at {hosts}" if self.sentinel_of else hosts


def parse(url: str) -> RedisUrl:
    """Raises `ValueError` with one line for people, which holds nothing that may be a password."""
    try:
        parts = urlsplit(url.strip())
    except ValueError:
        raise ValueError("LOG_URL: that is no URL; give redis://host:6379/0") from None
    scheme = parts.scheme.lower()
    if scheme not in SCHEMES or not url.strip()[len(scheme) :].startswith("://"):
        raise ValueError("LOG_URL: give redis://host:6379/0, rediss:// for TLS, or redis+sentinel://host:26379/name")
    tls, sentinel = SCHEMES[scheme]
    userinfo, _, hosts = parts.netloc.rpartition("@")
    user, _, password = userinfo.partition(":")
    name, database = _path(parts, sentinel=sentinel)
    options = _options(parts.query, tls=tls, sentinel=sentinel)
    return RedisUrl(
        addresses=tuple(_address(host, _SENTINEL_PORT if sentinel else _PORT) for host in hosts.split(",")),
        sentinel_of=name,
        database=database,
        username=unquote(user) or None,
        password=unquote(password) or None,
        prefix=options.pop("prefix", DEFAULT_PREFIX),
        connect_s=options.pop("socket_connect_timeout", CONNECT_S),
        command_s=options.pop("socket_timeout", COMMAND_S),
        sentinel_username=options.pop("sentinel_username", None),
        sentinel_password=options.pop("sentinel_password", None),
        tls=options if tls else None,
    )


def _address(text: str, default_port: int) -> Address:
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    host = unquote(host)
    if not host or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
        raise ValueError("LOG_URL: a host, or host:port with a port from 1 to 65535, is missing after redis://")
    return Address(host, int(port) if port else default_port)


def _path(parts: SplitResult, *, sentinel: bool) -> tuple[str | None, int]:
    """The Sentinels' name for the primary, and the number of the database."""
    name, path = None, unquote(parts.path).strip("/")
    if sentinel:
        name, _, path = path.partition("/")
        if not name:
            raise ValueError("LOG_URL: Sentinels need the name of the primary, as in redis+sentinel://host/mymaster/0")
    if parts.fragment or (path and not (path.isascii() and path.isdigit())):
        raise ValueError("LOG_URL: the database is a number, as in redis://host:6379/0; write # in a password as %23")
    return name, int(path or 0)


# ------------------------------------------------------------ options


def _options(query: str, *, tls: bool, sentinel: bool) -> dict[str, Any]:
    options: dict[str, Any] = {}
    known = _KNOWN | (_KNOWN_TLS if tls else {}) | (_KNOWN_SENTINEL if sentinel else {})
    for name, text in parse_qsl(query, keep_blank_values=True):
        if name in _KNOWN_TLS and not tls:
            raise ValueError(f"LOG_URL: {name} needs a rediss:// URL")
        if name not in known:
            raise ValueError(f"LOG_URL: there is no option {name!r}; there are {', '.join(sorted(known))}")
        try:
            options[name] = known[name](text)
        except (KeyError, ValueError):
            raise ValueError(f"LOG_URL: {name} has a wrong value") from None
    return options


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds <= 60:
        raise ValueError
    return seconds


def _prefix(text: str) -> str:
    if not text or not all(character.isalnum() or character in "_.:-" for character in text):
        raise ValueError  # above all no braces: they mark what a cluster's slot depends on
    return text


def _requirement(text: str) -> str:
    if text not in ("required", "optional", "none"):
        raise ValueError
    return text


def _truth(text: str) -> bool:
    return _TRUTH[text.lower()]


_KNOWN: dict[str, Callable[[str], Any]] = {
    "prefix": _prefix,
    "socket_connect_timeout": _seconds,
    "socket_timeout": _seconds,
}
_KNOWN_SENTINEL: dict[str, Callable[[str], Any]] = {"sentinel_username": str, "sentinel_password": str}
_KNOWN_TLS: dict[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_ca_data": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": _requirement,
    "ssl_check_hostname": _truth,
    "ssl_ciphers": str,
    "ssl_min_version": _TLS_VERSIONS.__getitem__,
}
