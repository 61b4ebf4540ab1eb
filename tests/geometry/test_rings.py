"""Rings in one array: taken, turned, closed, measured, and cut where they touch themselves."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.geometry.rings import Rings, cut_where_touching, joined

SQUARE = np.array([(5, 5), (9, 5), (9, 9), (5, 9)], np.int32)  # counterclockwise as one sees it, rows running down
HOLE = np.array([(6, 7), (7, 7), (7, 6), (6, 6)], np.int32)
CORNER = np.array([(2, 3), (0, 3), (0, 1)], np.int32)


@pytest.fixture
def rings() -> Rings:
    return Rings.of([0, 0, 1], [SQUARE, HOLE, CORNER])


def test_some_are_taken_in_order(rings: Rings):
    taken = rings.take(np.array([2, 0]))
    assert taken.regions.tolist() == [1, 0] and taken.lengths.tolist() == [3, 4]
    assert np.array_equal(taken.vertices_N2, np.concatenate([CORNER, SQUARE]))
    assert np.array_equal(rings.take(np.array([False, False, True])).vertices_N2, CORNER)
    assert len(rings.take(np.zeros(3, bool)).vertices_N2) == 0


def test_they_begin_at_their_uppermost_then_leftmost_vertex(rings: Rings):
    turned = rings.turned()
    assert turned.first_vertices().tolist() == [[5, 5], [6, 6], [0, 1]]
    assert turned.vertices_N2[-3:].tolist() == [[0, 1], [2, 3], [0, 3]]
    assert np.array_equal(turned.turned().vertices_N2, turned.vertices_N2)


def test_outlines_have_areas_above_and_holes_below_zero(rings: Rings):
    assert rings.doubled_areas().tolist() == [32, -2, 4]
    assert np.array_equal(rings.turned().doubled_areas(), rings.doubled_areas())


@pytest.mark.parametrize("backward", [False, True])
def test_closed_rings_end_where_they_began(rings: Rings, backward: bool):
    parts = np.split(rings.closed(backward=backward), np.cumsum(rings.lengths + 1)[:-1])
    for part, open_N2 in zip(parts, [SQUARE, HOLE, CORNER], strict=True):
        expected = np.concatenate([open_N2, open_N2[:1]])
        assert np.array_equal(part, expected[::-1] if backward else expected)


def test_joined_and_empty():
    empty = Rings.of([], [])
    both = joined([empty, Rings.of([3], [CORNER])])
    assert both.regions.tolist() == [3] and len(empty.turned().vertices_N2) == len(empty.doubled_areas()) == 0


def test_a_ring_is_cut_where_it_touches_itself():
    """Three squares on a diagonal, walked in one go; and a ring that touches nothing."""
    walk = np.array([(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (2, 3), (2, 2), (1, 2), (1, 1), (0, 1)], np.int32)
    found = [sorted(map(tuple, ring.tolist())) for ring in cut_where_touching(walk)]
    assert sorted(found) == [[(n, n), (n, n + 1), (n + 1, n), (n + 1, n + 1)] for n in range(3)]
    (alone,) = cut_where_touching(SQUARE)
    assert np.array_equal(alone, SQUARE)
