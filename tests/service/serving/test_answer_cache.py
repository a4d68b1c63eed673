"""The cache of answers: the same bytes again, and never after what they depend on has changed."""

import pytest

from service.serving.answer_cache import AnswerCache, WholeAnswer
from tests.support.fakes import FakePredict, fake_engine, running

ONE, TWO, THREE = (WholeAnswer([], name, "fast", 1) for name in (b"one", b"two", b"three"))


def test_the_least_recently_asked_goes_first() -> None:
    cache = AnswerCache(2)
    cache.put(b"1", ONE, 0)
    cache.put(b"2", TWO, 0)
    assert cache.get(b"1", 0) == ONE
    cache.put(b"3", THREE, 0)
    assert cache.get(b"2", 0) is None
    assert cache.get(b"1", 0) == ONE
    assert cache.get(b"3", 0) == THREE


def test_a_changed_label_empties_it_and_a_late_answer_is_not_kept() -> None:
    cache = AnswerCache(2)
    cache.put(b"1", ONE, 0)
    assert cache.get(b"1", 1) is None
    cache.put(b"1", ONE, 0)  # computed before the change
    assert cache.get(b"1", 1) is None


@pytest.mark.anyio
async def test_a_body_that_comes_again_is_answered_without_computing() -> None:
    predict = FakePredict()
    async with running(predict, cache_entries=4) as service:
        first = await service.recommend({"query": "moby dick"})
        again = await service.recommend({"query": "moby dick"})
        assert again.json() == first.json()
        assert again.headers["server-timing"].startswith("cache;desc=hit")
        assert len(predict.texts()) == 1
        assert await service.metric('astrolabe_cache_total{result="hit"}') == 1
        assert await service.metric('astrolabe_effort_total{point="balanced"}') == 2
        await service.recommend({"query": "moby dick", "k": 3})
        assert len(predict.texts()) == 2


@pytest.mark.anyio
async def test_a_change_of_labels_is_seen_at_once() -> None:
    predict = FakePredict()
    engine = fake_engine(predict)
    async with running(predict, engine, cache_entries=4) as service:
        await service.recommend({"query": "moby dick"})
        engine.catalogue_seq = 1
        await service.recommend({"query": "moby dick"})
        assert len(predict.texts()) == 2
