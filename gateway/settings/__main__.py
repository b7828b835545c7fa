"""Prints the README's table of settings."""

from gateway.settings.table import settings_table

print(settings_table())
