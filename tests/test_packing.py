"""Documents cut into segments and segments packed into rows, checked against the rule written out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.packing import best_fit, cut, hash_arrays, hold_out, pack

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=200).map(np.array)


def test_documents_are_cut_where_the_docstring_says():
    starts, lengths = cut(np.array([7]), np.array([20]), 8)
    assert (starts.tolist(), lengths.tolist()) == ([7, 15, 23], [8, 8, 4])


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(1, 60)), min_size=1), st.integers(1, 30))
@settings(deadline=None)
def test_segments_of_a_document_cover_it_once_in_full_rows_but_for_the_last(documents, row_length):
    starts, lengths = cut(*map(np.array, zip(*documents)), row_length)
    expected = [
        (start + done, min(row_length, length - done))
        for start, length in documents
        for done in range(0, length, row_length)
    ]
    assert list(zip(starts, lengths)) == expected


@pytest.mark.parametrize("lengths, rows", [([6, 5, 3, 2], [0, 1, 1, 0]), ([5, 4, 3, 3, 1], [0, 1, 0, 1, 1])])
def test_best_fit_puts_each_segment_where_least_room_is_left(lengths, rows):
    assert best_fit(np.array(lengths), 8).tolist() == rows


@given(LENGTHS)
@settings(deadline=None)
def test_best_fit_of_all_segments_of_a_length_equals_one_after_another(lengths):
    lengths = np.sort(lengths)[::-1]
    rooms = []  # by row
    for row, length in zip(best_fit(lengths, 50), lengths):
        if row == len(rooms):
            assert all(room < length for room in rooms)  # a new row only where none has room
            rooms.append(50)
        assert rooms[row] == min(room for room in [*rooms, 50] if room >= length)
        rooms[row] -= length


@given(LENGTHS, st.integers(0, 9), st.sampled_from([1, 7, 2**18]))
@settings(deadline=None)
def test_packing_places_every_segment_once_and_overfills_no_row(lengths, seed, together):
    order, first_segment = pack(lengths, 50, seed, together)
    assert sorted(order) == list(range(len(lengths)))
    assert first_segment[0] == 0 and first_segment[-1] == len(lengths) and (np.diff(first_segment) > 0).all()
    assert np.add.reduceat(lengths[order], first_segment[:-1]).max() <= 50


def test_packing_in_groups_shares_no_row_between_groups():
    order, first_segment = pack(np.full(20, 5), 50, seed=0, together=7)
    assert np.diff(first_segment).tolist() == [7, 7, 6]
    assert sorted(order) == list(range(20))


def test_another_seed_packs_other_segments_together_into_equally_many_rows():
    lengths = np.full(100, 10)
    (order, first), (other, other_first) = (pack(lengths, 50, seed) for seed in (1, 2))
    assert len(first) == len(other_first) == 21 and (order != other).any()
    assert (order != np.arange(100)).any()  # neighbours in the file do not share a row


def test_the_same_seed_packs_the_same():
    lengths = np.arange(1, 50)
    for first, again in zip(pack(lengths, 50, 3), pack(lengths, 50, 3)):
        assert (first == again).all()


@pytest.mark.parametrize("length, expected", [(10, 50), (30_000, 3), (250_000, 1)])
def test_held_out_is_a_hundredth_but_few_more_than_100_000_tokens(length, expected):
    kept, held_out = hold_out(np.cumsum([length] * 5000), seed=3)
    assert len(held_out) == expected
    assert sorted([*kept, *held_out]) == list(range(5000))


def test_hash_of_arrays_depends_on_each_of_them_and_on_their_order():
    a, b = np.arange(3), np.arange(4)
    assert len({hash_arrays(a, b), hash_arrays(b, a), hash_arrays(a), hash_arrays(a + 1, b)}) == 4
    assert hash_arrays(a, b) == hash_arrays(a.copy(), b.copy())
