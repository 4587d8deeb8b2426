"""A fleet of devices, one place to ask: profiles and networks are pushed as data, and plans are searched from them.

Nothing here trains, imports torch, or loads a user's code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from network.lazy import lazily

if TYPE_CHECKING:
    from search.service.api import create_app
    from search.service.client import Client
    from search.service.settings import ServiceSettings
    from search.service.storage import Storage

__all__ = ["Client", "ServiceSettings", "Storage", "create_app"]

__getattr__ = lazily(
    __name__,
    {"api": ("create_app",), "client": ("Client",), "settings": ("ServiceSettings",), "storage": ("Storage",)},
)
