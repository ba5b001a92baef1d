"""Property tests assert no timings: a busy machine is no failure."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("fulgurite", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fulgurite")
