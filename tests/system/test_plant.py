"""A sample of the simulated plant: no detectable error is committed, and every good weighing is."""

from pathlib import Path

import pytest

from tests.support.plant_errors import SCRIPTS
from tests.support.plant_truth import planned, run

WEIGHINGS = 240
DOCKS = 50


@pytest.mark.parametrize("with_master", [False, True], ids=["without master", "with master"])
def test_plant_commits_no_detectable_error_and_every_good_weighing(tmp_path: Path, with_master: bool) -> None:
    tallies = run(tmp_path, planned(WEIGHINGS, DOCKS, 0.95, seed=3), with_master=with_master)
    assert list(tallies) == list(SCRIPTS)
    for kind, tally in tallies.items():
        assert tally.weighings > 12, kind
        assert not tally.wrong, kind
        assert not tally.missing, kind
        # A last digit that flickers between a look and a press is refused, and the operator presses again.
        assert set(tally.good_refused) <= {"reading_changed"}, kind
        assert tally.right + tally.undetectable.total() == tally.weighings, kind
    assert tallies["good"].right == tallies["good"].weighings
    for kind in ("previous cylinder left on", "empty pan", "wrong unit", "overloaded", "double click"):
        assert not tallies[kind].undetectable, kind
    caps = tallies["cap left on"]
    assert bool(caps.refused["implausible_weight"]) == with_master
