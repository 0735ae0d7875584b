from __future__ import annotations

from avdata.errors import QuarantineReason
from avdata.reporting.remedies import REMEDIES


def test_every_quarantine_reason_has_a_remedy() -> None:
    assert set(REMEDIES) == set(QuarantineReason)
