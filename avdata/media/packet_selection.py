"""Which packets of a video must be decoded for the frames at given times: pure functions of their clocks."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

TIME_TOLERANCE_S = 1e-9
"""Seconds by which two ways of turning ticks into seconds may differ; a frame that comes so soon has come."""


@dataclass(frozen=True, slots=True)
class PacketSelection:
    """The way through a video's packets.

    Attributes:
        runs: first and last place of each stretch to decode, each beginning with a keyframe, ascending.
        selected: places of the packets whose frames are wanted.
        times: when the wanted frames come on screen, s ascending.
    """

    runs: tuple[tuple[int, int], ...]
    selected: frozenset[int]
    times: tuple[float, ...]

    @classmethod
    def select_packets(
        cls, packets: Sequence[Any], moments: Sequence[float], base: float, *, seek: bool
    ) -> PacketSelection | None:
        """The way to the frames on screen at ascending moments.

        Args:
            packets: in decoding order; of each its `pts`, `is_keyframe` and `is_discard` are looked at.
            moments: s.
            base: s a tick.
            seek: begin at the keyframes before them, and not at the first packet.

        Returns:
            None when the packets' clocks do not tell: a time is missing or stands twice.
        """
        ticks = [packet.pts for packet in packets]
        place_of = {tick: place for place, tick in enumerate(ticks)}
        if None in place_of or len(place_of) < len(ticks):
            return None
        seen = sorted(packet.pts for packet in packets if not packet.is_discard)
        if not seen:
            return None
        times = [tick * base for tick in seen]
        wanted: set[int] = set()
        for moment in moments:
            for nudged in (moment - TIME_TOLERANCE_S, moment + TIME_TOLERANCE_S):
                wanted.add(seen[max(bisect_right(times, nudged) - 1, 0)])
        keys = [place for place, packet in enumerate(packets) if packet.is_keyframe]
        places = {tick: place_of[tick] for tick in sorted(wanted)}
        if not seek:
            return cls(((0, max(places.values())),), frozenset(places.values()), _seconds(places, base))
        runs: list[tuple[int, int]] = []
        for tick, place in places.items():
            # Frames that are shown before a keyframe but decoded after it need the one before.
            first = max((key for key in keys if key <= place and ticks[key] <= tick), default=0)
            if runs and first <= runs[-1][1] + 1:
                runs[-1] = (runs[-1][0], max(runs[-1][1], place))
            else:
                runs.append((first, place))
        return cls(tuple(runs), frozenset(places.values()), _seconds(places, base))


def _seconds(ticks: Iterable[int], base: float) -> tuple[float, ...]:
    return tuple(tick * base for tick in ticks)
