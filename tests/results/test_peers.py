"""Peers: the nearest of the same kind, and spreads of each kind by itself."""

from __future__ import annotations

import numpy as np

from pipeline.results.peers import LEAST_PARCELS, below_group, beside_peers, find_peers, known_neighbours, nearest_neighbours


def test_neighbours_are_the_nearest_others():
    places = np.random.default_rng(5).random((60, 2))
    places[1] = places[0]
    found = nearest_neighbours(places, 4)
    distance = np.hypot(*(places[:, None] - places[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    for parcel in range(60):
        assert parcel not in found[parcel] and len(set(found[parcel])) == 4
        assert np.allclose(distance[parcel, found[parcel]], np.sort(distance[parcel])[:4])
    assert nearest_neighbours(places[:3], 15).shape == (3, 2) and nearest_neighbours(places[:1], 15).shape == (1, 0)
    assert (nearest_neighbours(np.zeros((30, 2)), 5) != np.arange(30)[:, None]).all()


def test_peers_are_of_the_same_kind_and_rare_kinds_are_one_group():
    random = np.random.default_rng(6)
    kinds = np.repeat([3, 255, 7, 9], [100, 50, 6, 5])[random.permutation(161)]
    peers = find_peers(random.random((161, 2)), kinds, 8)
    assert peers.group_P.max() == 2
    for parcel in range(161):
        assert (peers.group_P[peers.neighbours_PK[parcel]] == peers.group_P[parcel])[peers.neighbours_PK[parcel] >= 0].all()
    assert len(set(peers.group_P[np.isin(kinds, (7, 9))])) == 1
    few = find_peers(random.random((4, 2)), np.zeros(4, int), 8)
    assert (few.neighbours_PK[:, :3] >= 0).all() and (few.neighbours_PK[:, 3:] == -1).all()


def test_what_lies_beside_and_below_is_that_of_a_loop():
    random = np.random.default_rng(7)
    kinds = random.choice([0, 1, 2], 300, p=[0.5, 0.46, 0.04])
    peers = find_peers(random.random((300, 2)), kinds, 10)
    change = np.where(random.random(300) < 0.3, np.nan, random.normal(0, 0.05 + 0.1 * kinds))
    beside, below = beside_peers(change[None], peers)[0], below_group(change, peers, 0.02)
    count = known_neighbours(change, peers, np.arange(300))
    for group in set(peers.group_P.tolist()):
        members = np.flatnonzero((peers.group_P == group) & np.isfinite(change))
        if len(members) < LEAST_PARCELS:
            assert np.isnan(below.z[members]).all() and np.isnan(beside[members]).all()
            continue
        for parcel in members:
            asked = change[[neighbour for neighbour in peers.neighbours_PK[parcel] if neighbour >= 0]]
            asked = asked[np.isfinite(asked)]
            assert count[parcel] == len(asked)
            near = np.median(asked) if len(asked) >= 5 else np.median(change[members])
            assert abs(beside[parcel] - (change[parcel] - near)) < 1e-6
        depth = np.median(change[members]) - change[members]
        assert np.allclose(below.z[members], depth / max(1.4826 * np.median(np.abs(depth)), 0.02))
    assert np.isnan(below.z[np.isnan(change)]).all() and np.isnan(beside[np.isnan(change)]).all()
