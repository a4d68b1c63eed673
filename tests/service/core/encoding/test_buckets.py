import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.encoding.buckets import Bucket, Buckets, empty_inputs, fill, powers_of_two


def test_there_are_few_shapes_and_the_limits_are_among_them() -> None:
    buckets = powers_of_two(64, 128)
    assert len(buckets) == len(list(buckets)) == 7 * 5
    assert buckets.largest == (64, 128)
    assert powers_of_two(1, 3) == Buckets((1,), (3,))


@given(
    limits=st.tuples(st.integers(1, 300), st.integers(1, 600)), shares=st.tuples(st.floats(0, 1))
)
def test_any_batch_fits_a_bucket_less_than_twice_its_size(
    limits: tuple[int, int], shares: tuple[float]
) -> None:
    buckets = powers_of_two(*limits)
    rows = 1 + int(shares[0] * (limits[0] - 1))
    length = 1 + int(shares[0] * (limits[1] - 1))
    found = buckets.fitting(rows, length)
    assert found.rows >= rows
    assert found.length >= length
    assert found.rows < 2 * rows
    assert found.length <= max(2 * length, 8)


@pytest.mark.parametrize("shape", [(0, 8), (65, 8), (1, 129)])
def test_what_fits_none_is_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="fits no bucket"):
        powers_of_two(64, 128).fitting(*shape)


@given(rows=st.integers(1, 500), most=st.integers(1, 70))
def test_runs_cover_every_row_once_and_in_order(rows: int, most: int) -> None:
    parts = list(powers_of_two(most, 8).runs(rows))
    covered = [row for part in parts for row in range(rows)[part]]
    assert covered == list(range(rows))
    assert all(part.stop - part.start <= most for part in parts)


def test_padding_leaves_nothing_of_the_batch_before() -> None:
    ids, mask = empty_inputs(Bucket(4, 8))
    fill(np.full((4, 8), 7), np.ones((4, 8), np.int64), ids, mask)
    fill(np.full((2, 3), 5), np.ones((2, 3), np.int64), ids, mask)
    assert ids.sum() == 2 * 3 * 5
    np.testing.assert_array_equal(mask[:2], [[1, 1, 1, 0, 0, 0, 0, 0]] * 2)
    np.testing.assert_array_equal(mask[2:], [[1, 0, 0, 0, 0, 0, 0, 0]] * 2)
