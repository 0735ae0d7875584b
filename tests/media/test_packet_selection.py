from __future__ import annotations

from avdata.media.packet_selection import PacketSelection


def test_run_begins_at_the_keyframe_that_leading_frames_need() -> None:
    class Packet:
        def __init__(self, pts: int | None, is_keyframe: bool = False) -> None:
            self.pts, self.is_keyframe, self.is_discard = pts, is_keyframe, False

    # In decoding order; 5 and 6 are presented before the second keyframe, 7, and refer to frames before it.
    packets = [Packet(n, n == 0) for n in range(5)] + [Packet(7, True), Packet(5), Packet(6), Packet(8)]
    early, late = (
        PacketSelection.select_packets(packets, [5.5], 1.0, seek=True),
        PacketSelection.select_packets(packets, [8.5], 1.0, seek=True),
    )
    assert early is not None
    assert late is not None
    assert early.runs == ((0, 6),)
    assert late.runs == ((5, 8),)
    assert PacketSelection.select_packets([*packets, Packet(None)], [5.5], 1.0, seek=True) is None
    assert PacketSelection.select_packets([*packets, Packet(8)], [5.5], 1.0, seek=True) is None
