"""Frames that are built to be expensive; ``benchmarks/hostile_frames.py`` measures their time and memory."""

import pytest

from benchmarks.hostile_frames import FRAMES, MULTIPLE, frame, memory, turns
from tests.unit.test_frames import CONSTANT, NAME, outcome

MEGA = 2**20


@pytest.mark.parametrize(
    "name",
    ["ints appended", "doubles and ints", "longs of no byte", "JSON ints", "JSON nulls and ints", "JSON one long text"],
)
def test_frame_reader_hostile_frame_takes_small_multiple_of_its_size(name: str) -> None:
    assert memory(frame(*FRAMES[name], size=MEGA)) <= MULTIPLE * MEGA + CONSTANT


@pytest.mark.parametrize("name", FRAMES)
def test_frame_reader_hostile_frame_in_pieces_gives_the_same(name: str) -> None:
    stream = NAME + frame(*FRAMES[name], size=3000)
    whole = outcome([stream])
    for size in (1000, 7):
        assert outcome([stream[at : at + size] for at in range(0, len(stream), size)]) == whole


@pytest.mark.parametrize(
    "name",
    ["ints appended", "ints of two bytes appended", "ints of four bytes appended", "doubles appended", "small ints"],
)
def test_pickle_reader_numbers_of_any_form_are_read_together(name: str) -> None:
    # One by one they take 600 times as long as doubles. Both are measured alternately; the best of each counts.
    costs = {"doubles": 99.0, name: 99.0}
    for _ in range(5):
        for each in costs:
            costs[each] = min(costs[each], sum(turns(frame(*FRAMES[each], size=MEGA), MEGA)))
    assert costs[name] < 120 * costs["doubles"]


@pytest.mark.parametrize("name", ["text and binary", "text and doubles", "text and binary appended"])
def test_pickle_reader_alternating_text_and_binary_numbers_are_refused(name: str) -> None:
    pieces = turns(frame(*FRAMES[name], size=4 * MEGA), 4 * MEGA)
    assert len(pieces) < 20
