"""A slice of `make fuzz`: it trains or is refused in one line, never a traceback, never a hang."""

import fuzz


def test_random_configurations(tmp_path):
    codes, faults = fuzz.campaign(6, seed=20261122, root=tmp_path / "fuzz", every=0)
    assert faults == []
    assert codes[0] >= 1  # it is not all refused
    assert codes[2] >= 1
