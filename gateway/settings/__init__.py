"""The settings: one frozen, typed tree, read once and handed on in slices."""

from gateway.settings.load import load_settings
from gateway.settings.tools import HttpTool, McpServer, Tools
from gateway.settings.tree import (
    DEFAULT_UPSTREAM_MODEL,
    Limits,
    LogAndSessions,
    Serving,
    Upstream,
    Who,
)
from gateway.settings.whole import Settings
from gateway.settings.wrong import SettingsError

__all__ = [
    "DEFAULT_UPSTREAM_MODEL",
    "HttpTool",
    "Limits",
    "LogAndSessions",
    "McpServer",
    "Serving",
    "Settings",
    "SettingsError",
    "Tools",
    "Upstream",
    "Who",
    "load_settings",
]
