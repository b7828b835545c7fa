"""The playground's files, read once: a chat page without a build step."""

from __future__ import annotations

from importlib.resources import files
from typing import Final

MEDIA_TYPES: Final = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self' ws: wss:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

ASSETS: Final[dict[str, tuple[bytes, str]]] = {
    entry.name: (entry.read_bytes(), MEDIA_TYPES[suffix])
    for entry in files(__name__).iterdir()
    if (suffix := entry.name.rpartition(".")[2]) in MEDIA_TYPES
}
"""name -> (content, media type)"""
