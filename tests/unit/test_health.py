"""What does not work, asked of each part."""

from gateway.runtime.health import Health


def test_without_parts_there_are_no_problems() -> None:
    assert Health().problems() == []


def test_problems_are_asked_for_anew_and_stand_in_the_order_of_the_parts() -> None:
    health = Health()
    first: list[str] = []
    second = ["the disk is full"]
    health.watch(lambda: first)
    health.watch(lambda: second)
    assert health.problems() == ["the disk is full"]
    first.append("raw files cannot be written")
    assert health.problems() == ["raw files cannot be written", "the disk is full"]
    second.clear()
    assert health.problems() == ["raw files cannot be written"]
