"""What every test wants: no waiting for cores that the other tests keep busy, nothing kept from one to the next, and
the same chance whichever ran before.
"""

import pytest

import latency.placement
from network.seeding import seed_all


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(latency.placement, "PATIENCE_S", 0.0)


@pytest.fixture(autouse=True)
def forgetful(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("NARROWGAUGE_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def seeded():
    seed_all(0)
