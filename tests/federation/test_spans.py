"""Spans: nested, with exclusive times that add up, and nothing at all where they are switched off."""

import os
import time
from collections.abc import Iterator

import pytest

from privbench.benchmarks.federation import spans
from privbench.benchmarks.federation.processes import Pool
from privbench.benchmarks.federation.spans import Span, span


@pytest.fixture(autouse=True)
def _off() -> Iterator[None]:
    yield
    spans.switch(False)


def test_off_is_one_object_and_records_nothing():
    assert span("a") is span("b", 3)
    with span("a"):
        pass
    spans.adopt([Span("a", 1, -1, 0, 0, 1, 1, 1, 1)])
    assert spans.take() == ()


def test_a_part_within_another_is_taken_out_of_its_own_time():
    spans.switch(True)
    with span("outer", 7):
        time.sleep(0.002)
        with span("inner"):
            time.sleep(0.004)
        with span("inner"):
            pass
    first, second, outer = spans.take()
    assert spans.take() == ()
    assert [s.name for s in (first, second, outer)] == ["inner", "inner", "outer"]
    assert (outer.client, first.client, outer.depth, first.depth) == (7, -1, 0, 1)
    assert {s.process for s in (first, second, outer)} == {os.getpid()}
    assert outer.wall == outer.own_wall + first.wall + second.wall
    assert outer.cpu == outer.own_cpu + first.cpu + second.cpu
    assert first.wall >= 4e6
    assert outer.own_wall >= 2e6
    assert outer.start <= first.start
    assert first.start + first.wall <= second.start


def test_a_part_that_fails_is_over():
    spans.switch(True)
    with pytest.raises(ValueError, match="no"), span("outer"), span("inner"):
        raise ValueError("no")
    assert [s.depth for s in spans.take()] == [1, 0]


def test_spans_travel_as_text_and_numbers():
    spans.switch(True)
    with span("a", 2):
        pass
    (made,) = spans.take()
    assert spans.read(spans.plain([made])) == (made,)


def work(_: object, item: int) -> tuple[Span, ...]:
    with span("work", item):
        pass
    return spans.take()


def test_a_fork_begins_without_what_its_parent_has_recorded():
    spans.switch(True)
    with span("before"):
        pool = Pool(None, 1)
        try:
            found = [made for taken in pool.map(work, [0, 1]) for made in taken]
        finally:
            pool.close()
    assert [(s.name, s.client, s.depth) for s in found] == [("work", 0, 0), ("work", 1, 0)]
    assert os.getpid() not in {s.process for s in found}
    spans.adopt(found)
    assert {s.name for s in spans.take()} == {"before", "work"}
