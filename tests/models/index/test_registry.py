"""Every kind that the configuration allows can be built, opened, and says so."""

from typing import get_args

import pytest

from models.config import IndexConfig
from models.index.registry import KINDS
from service.core.index.opening import OPENERS


def test_configuration_training_and_service_know_the_same_kinds():
    allowed = get_args(IndexConfig.model_fields["kind"].annotation)
    assert set(allowed) == set(KINDS) == set(OPENERS)


@pytest.mark.parametrize("name", list(KINDS))
def test_what_a_kind_is_built_by_are_keys_of_the_configuration(name):
    assert set(KINDS[name].params(IndexConfig())) <= set(IndexConfig.model_fields)


@pytest.mark.parametrize("name", list(KINDS))
def test_a_grid_is_of_whole_numbers_and_names_no_entry_twice(name):
    grid = KINDS[name].grid(IndexConfig(), 10_000)
    assert grid
    assert all(type(value) is int for params in grid for value in params.values())
    assert len({tuple(sorted(params.items())) for params in grid}) == len(grid)
