"""How the service is configured: by environment variables NARROWGAUGE_..., which the flags of `serve` override."""

from __future__ import annotations

import ipaddress
from typing import Literal

import platformdirs
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from network.errors import InputError

__all__ = ["ServiceSettings", "default_database"]


def default_database() -> str:
    """SQLite in the platform's user data folder."""
    return f"sqlite:///{platformdirs.user_data_path('narrowgauge') / 'service.db'}"


class ServiceSettings(BaseSettings):
    """Every knob, with its unit. Workers are started with the same environment, so they share it."""

    model_config = SettingsConfigDict(env_prefix="NARROWGAUGE_", frozen=True, extra="ignore")

    database: SecretStr = Field(default_factory=lambda: SecretStr(default_database()))
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    auth: Literal["auto", "on", "off"] = "auto"
    hosts: str = ""
    """Names, separated by commas, that the service answers to; without any, loopback's where tokens are off."""
    workers: int = Field(default=1, ge=0, le=256)
    max_body_bytes: int = Field(default=16 * 2**20, ge=1024)
    requests_per_minute: int = Field(default=6000, ge=1)
    lease_seconds: float = Field(default=30.0, gt=0)
    plan_seconds: float = Field(default=900.0, gt=0)
    job_attempts: int = Field(default=3, ge=1)
    job_days: float = Field(default=30.0, gt=0)
    search_memory_bytes: int = Field(default=8 * 2**30, ge=2**28)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @property
    def url(self) -> str:
        """The database's URL, its password included."""
        return self.database.get_secret_value()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that give another process the same settings, the database's password included."""
        fields = self.model_dump() | {"database": self.url}
        return {f"NARROWGAUGE_{name.upper()}": str(value) for name, value in fields.items()}

    @property
    def needs_tokens(self) -> bool:
        """Whether requests must carry a token. Raises InputError where they must, and `auth` is off."""
        if self.auth == "off" and not is_loopback(self.host):
            raise InputError(f"--auth off on {self.host} would let anyone write; listen on 127.0.0.1, or leave it out")
        return self.auth == "on" or not is_loopback(self.host)

    @property
    def allowed_hosts(self) -> list[str]:
        """What the Host header may say: without tokens only loopback's names, against DNS rebinding."""
        named = [host.strip() for host in self.hosts.split(",") if host.strip()]
        return named or (["*"] if self.needs_tokens else ["localhost", "127.0.0.1", "[::1]"])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
