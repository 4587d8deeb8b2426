"""What every test wants: nobody waits for cores that the other tests keep busy."""

import pytest

import latency.placement


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(latency.placement, "PATIENCE_S", 0.0)
