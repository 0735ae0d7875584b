"""Fixtures of the Hub on loopback."""

from support.hub_fixtures import hub, no_hub, own_set, slept

__all__ = ["hub", "no_hub", "own_set", "slept"]
