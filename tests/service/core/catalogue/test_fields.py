"""The index of metadata against a look at every label, whatever metadata looks like."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.core.catalogue.fields import FieldIndex, meets

VALUES = st.sampled_from(["a", "b", "1", 0, 1, 2, 1.0, 2.5, True, False])
METADATA = st.dictionaries(
    st.sampled_from(["lang", "tags", "year", "rare"]),
    VALUES
    | st.none()
    | st.lists(VALUES | st.none() | st.lists(VALUES, max_size=2), max_size=3)
    | st.dictionaries(st.just("in"), VALUES, max_size=1),
    max_size=3,
)
FIRST_KINDS = [
    [{"lang": "a", "tags": ["a", "a", "b"]}, {"lang": "b", "tags": []}, {}],
    [{"tags": [True, False, True]}, {"tags": None}, {"tags": [False]}],
    [{"lang": True}, {}, {"lang": False}],
]


@settings(max_examples=150)
@given(
    labels=st.lists(METADATA, max_size=30),
    kind=st.none() | st.sampled_from(FIRST_KINDS),
    asked=st.dictionaries(
        st.sampled_from(["lang", "tags", "year", "none"]),
        st.lists(VALUES, min_size=1, max_size=3),
        min_size=1,
        max_size=2,
    ),
)
def test_rows_are_those_that_a_look_at_every_label_finds(
    labels: list[dict[str, Any]], kind: list[dict[str, Any]] | None, asked: dict[str, list[Any]]
) -> None:
    labels = [*(kind or []), *labels]
    found = FieldIndex(labels).rows_where(asked)
    assert found.dtype == "int64"
    assert found.tolist() == [row for row, one in enumerate(labels) if meets(one, asked)]


@pytest.mark.parametrize("n_fields", [1, 40])
def test_many_labels_in_many_fields_are_found(n_fields: int) -> None:
    labels: list[dict[str, Any]] = [
        {f"field {row % n_fields}": row % 7, "tags": ["x", f"t{row % 3}"]} for row in range(2000)
    ]
    index = FieldIndex(labels)
    asked = {"field 0": [3, 4], "tags": "t1"}
    wanted = [row for row, one in enumerate(labels) if meets(one, asked)]
    assert index.rows_where(asked).tolist() == wanted
    assert wanted


def test_no_condition_is_refused() -> None:
    with pytest.raises(ValueError, match="no condition"):
        FieldIndex([{"lang": "a"}]).rows_where({})
