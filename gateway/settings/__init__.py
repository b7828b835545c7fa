"""The settings: one frozen, typed tree, read once and handed on in slices."""

from gateway.settings.load import SettingsError, load_settings
from gateway.settings.tree import (
    DEFAULT_UPSTREAM_MODEL,
    Limits,
    LogAndSessions,
    Serving,
    Settings,
    Upstream,
    Who,
)

__all__ = [
    "DEFAULT_UPSTREAM_MODEL",
    "Limits",
    "LogAndSessions",
    "Serving",
    "Settings",
    "SettingsError",
    "Upstream",
    "Who",
    "load_settings",
]
