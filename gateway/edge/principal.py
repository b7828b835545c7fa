"""Who a connection or a request acts for. The seam at which authentication comes in."""

from __future__ import annotations

from sys import intern
from typing import NamedTuple, Protocol

from gateway.logs.log import Key


class Principal(NamedTuple):
    """Tenant and subject own their conversations: the same id of somebody else is another conversation."""

    tenant: str
    subject: str

    def key(self, conversation_id: str) -> Key:
        # JSON-free and unambiguous: a tenant with a slash can't be taken for another tenant's subject.
        # One string for all that somebody owns.
        return Key(intern(f"{len(self.tenant)}:{self.tenant}/{self.subject}"), conversation_id)


class Authenticator(Protocol):
    """Says who is there. Raises `Refusal` (`UNAUTHORIZED`) for credentials that aren't good."""

    def authenticate(self, token: str | None) -> Principal: ...


class NoAuthentication:
    """`AUTH` `none`: everybody is the same person. Only for a loopback address, or behind `--insecure`."""

    def authenticate(self, token: str | None) -> Principal:
        return Principal("", "anonymous")
