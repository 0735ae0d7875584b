"""Select the packets to decode for the frames at given times, from their timestamps alone."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TIME_TOLERANCE_S = 1e-9
"""Tolerance for the time of a frame: two conversions of pts to seconds may differ by it."""


@dataclass(frozen=True, slots=True)
class PacketSelection:
    """The packets to decode.

    Attributes:
        runs: first and last index of each run of packets, ascending; each run begins with a keyframe.
        selected: indices of the packets whose frames are requested.
        times: presentation times of the requested frames, s, ascending.
    """

    runs: tuple[tuple[int, int], ...]
    selected: frozenset[int]
    times: tuple[float, ...]

    @classmethod
    def select_packets(
        cls, packets: Sequence[Any], times: Sequence[float], time_base: float, *, seek: bool
    ) -> PacketSelection | None:
        """Select the packets needed for the frames on screen at ascending times.

        Args:
            packets: PyAV packets in decoding order; `pts`, `is_keyframe` and `is_discard` are read.
            times: s.
            time_base: s per unit of pts.
            seek: start at the keyframes before the frames instead of at the first packet.

        Returns:
            None if a packet has no pts or two have the same.
        """
        all_pts = [packet.pts for packet in packets]
        index_of = {pts: index for index, pts in enumerate(all_pts)}
        if None in index_of or len(index_of) < len(all_pts):
            return None
        shown_pts = sorted(packet.pts for packet in packets if not packet.is_discard)
        if not shown_pts:
            return None
        frame_times = [pts * time_base for pts in shown_pts]
        requested: set[int] = set()
        for time in times:
            for shifted in (time - TIME_TOLERANCE_S, time + TIME_TOLERANCE_S):
                requested.add(shown_pts[max(bisect_right(frame_times, shifted) - 1, 0)])
        indices = {pts: index_of[pts] for pts in sorted(requested)}
        runs = [(0, max(indices.values()))]
        if seek:
            keyframes = [index for index, packet in enumerate(packets) if packet.is_keyframe]
            runs = _runs(indices, keyframes, all_pts)
        return cls(tuple(runs), frozenset(indices.values()), tuple(pts * time_base for pts in indices))


def _runs(indices: dict[int, int], keyframes: Sequence[int], all_pts: Sequence[int]) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for pts, index in indices.items():
        # A frame that is decoded after a keyframe but shown before it refers to the keyframe before that.
        first = max((key for key in keyframes if key <= index and all_pts[key] <= pts), default=0)
        if runs and first <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], max(runs[-1][1], index))
        else:
            runs.append((first, index))
    return runs
