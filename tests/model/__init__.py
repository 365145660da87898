"""The rules against models of them, in sequences that nobody has thought of."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# How long an example takes says how busy this machine is, and the first one of a fresh machine makes tables of Unicode.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
