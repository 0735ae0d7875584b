"""Timestamps of decoded frames as ffmpeg's best effort, for streams whose pts are missing or wrong."""

from __future__ import annotations

from typing import Any


class BestEffortTimestamps:
    """Timestamps of the frames of one stream, in the order in which the decoder returns them.

    A frame has its pts, or the dts of the packet after which the decoder returned it: that of the two which
    went backwards less often so far. This is `best_effort_timestamp` of ffmpeg's libavcodec, which PyAV does
    not expose. A frame without both follows the frame before it, as in the `ffmpeg` program.
    """

    def __init__(self) -> None:
        self._num_backward_pts = self._num_backward_dts = 0
        self._last_pts: int | None = None
        self._last_dts: int | None = None
        self._last: int | None = None
        self._interval = 1

    def next_pts(self, frame: Any) -> int:
        """Return the timestamp of the next frame, in units of the time base.

        Args:
            frame: PyAV's; `pts`, `dts` and `duration` are read.
        """
        timestamp = self._corrected_pts(frame.pts, frame.dts)
        if timestamp is None:
            timestamp = 0 if self._last is None else self._last + self._interval
        self._interval = self._estimate_interval(timestamp, frame.duration or 0)
        self._last = timestamp
        return timestamp

    def _corrected_pts(self, pts: int | None, dts: int | None) -> int | None:
        if dts is not None:
            self._num_backward_dts += self._last_dts is not None and dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._num_backward_pts += self._last_pts is not None and pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts
        is_pts_better = dts is None or self._num_backward_pts <= self._num_backward_dts
        return pts if pts is not None and is_pts_better else dts

    def _estimate_interval(self, timestamp: int, duration: int) -> int:
        passed = 0 if self._last is None else timestamp - self._last
        # A duration of one unit is often ffmpeg's guess.
        if duration > 0 and not (duration == 1 and passed > 2):
            return duration
        return passed if passed > 0 else max(duration, self._interval)
