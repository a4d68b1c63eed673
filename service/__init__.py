"""The service: bundles in, answers over HTTP out."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from service.recommender import Recommender as Recommender


def __getattr__(name: str) -> object:
    """`from service import Recommender`, which imports its libraries only then."""
    if name == "Recommender":
        from service.recommender import Recommender

        return Recommender
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
