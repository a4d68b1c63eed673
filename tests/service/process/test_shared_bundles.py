"""Shared bundles: what a master holds, and when it says that workers must be replaced."""

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest

from service.background import Background
from service.bundle.manifest import POINTER
from service.process import shared_bundles
from service.process.serve import open_engines
from service.process.shared_bundles import SharedBundles
from service.serving.desired import Desired, DesiredModel, read_desired, write_desired
from tests.support.bundle_root import bundle_id, write_bundle_root
from tests.support.fakes import fake_settings


class Counts:
    """Takes the place of the master's metrics, which would be those of the whole test process."""

    def __init__(self) -> None:
        self.background = Background(lambda task: None)
        self.counted: list[str] = []

    def count_renewal(self, result: str) -> None:
        self.counted.append(f"renewal {result}")

    def count_swap(self, result: str) -> None:
        self.counted.append(f"swap {result}")


class Master:
    """Shared bundles of a root, on a clock that the test moves."""

    def __init__(self, root: Path, watch_s: float = 0.0) -> None:
        self.root, self.state, self.now_s = root, root.parent / "state", 100.0
        self.state.mkdir()
        settings = fake_settings(
            bundle=root, device="cpu", workers=2, state_dir=self.state, watch_s=watch_s
        )
        self.counts = Counts()
        self.bundles = SharedBundles(
            open_engines(settings),
            settings,
            self.counts,  # type: ignore[arg-type]
            lambda: self.now_s,
        )

    def choose(self, configured: str = "one", **models: str | DesiredModel) -> None:
        """Write what a worker would: which bundle of the root is current for each model."""
        chosen = {
            name: DesiredModel(str(self.root / model)) if isinstance(model, str) else model
            for name, model in models.items()
        }
        write_desired(self.state, Desired(str(self.root / configured), chosen))

    def held(self) -> set[str]:
        return {folder.name for folder in self.bundles.held.engines}

    def current(self) -> list[str]:
        return [engine.folder.name for engine in self.bundles.current if engine.folder]


@pytest.fixture
def make(
    tiny_bundle: Path, tiny_flat_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Master]:
    monkeypatch.setattr(shared_bundles, "n_threads", lambda: 1)  # those of the test runner
    root = write_bundle_root(tmp_path / "bundles", tiny_bundle, tiny_flat_bundle)
    return lambda **changes: Master(root, **changes)


def test_another_choice_is_opened_and_what_nobody_wants_is_freed(
    make: Callable[..., Master],
) -> None:
    master = make()
    assert not master.bundles.due()
    old = weakref.ref(master.bundles.current[0].manifest)
    master.choose(tiny="two")
    assert master.bundles.due()
    assert master.bundles.due(), "as long as no renewal has ended"
    master.bundles.ended(succeeded=True)
    assert not master.bundles.due()
    assert master.held() == {"two"}
    gc.collect()
    assert old() is None
    assert master.counts.counted == ["renewal succeeded"]


CHOICES: dict[str, tuple[dict[str, str | DesiredModel], list[str], set[str]]] = {
    "a model more": ({"other": "other", "tiny": "one"}, ["one", "other"], {"one", "other"}),
    "the default model left out": ({"other": "other"}, ["one", "other"], {"one", "other"}),
    "a canary": ({"tiny": DesiredModel("one", None, "two", 5.0)}, ["one"], {"one", "two"}),
    "one bundle refused": (
        {"tiny": "broken", "other": "other"},
        ["one", "other"],
        {"one", "other"},
    ),
    "a canary refused": ({"tiny": DesiredModel("two", None, "broken", 5.0)}, ["one"], {"one"}),
    "another model's bundle": ({"tiny": "other"}, ["one"], {"one"}),
}


@pytest.mark.parametrize(("models", "current", "held"), CHOICES.values(), ids=CHOICES)
def test_every_model_follows_the_choice_or_stays_as_it_is(
    make: Callable[..., Master],
    models: dict[str, str | DesiredModel],
    current: list[str],
    held: set[str],
) -> None:
    master = make()
    root = master.root
    absolute = {
        name: model
        if isinstance(model, str)
        else DesiredModel(str(root / model.bundle), None, str(root / str(model.canary)), 5.0)
        for name, model in models.items()
    }
    master.choose(**absolute)
    assert master.bundles.due() is (held != {"one"})
    assert (master.current(), master.held()) == (current, held)


def test_a_choice_from_before_the_settings_named_another_bundle_is_ignored(
    make: Callable[..., Master],
) -> None:
    master = make()
    master.choose(configured="other", tiny="two")
    assert not master.bundles.due()
    assert master.held() == {"one"}


def test_what_the_file_names_before_the_first_fork_needs_no_renewal(
    make: Callable[..., Master],
) -> None:
    master = make()
    master.choose(tiny="two")
    master.bundles.open_choice()
    assert master.current() == ["two"]
    assert not master.bundles.due()


def test_after_a_refusal_it_rests_until_a_pause_has_passed_or_the_file_is_new(
    make: Callable[..., Master], caplog: pytest.LogCaptureFixture
) -> None:
    master = make()
    master.choose(tiny="broken")
    tries = []
    for _ in range(50):
        master.bundles.due()
        tries.append(len(master.counts.counted))
        master.now_s += 0.1
    assert tries[0] == tries[1] == 1
    assert tries[-1] == 5, "after 0.25, 0.5, 1 and 2 s"
    assert not master.counts.background.healthy()["share-bundles"]
    faults = [r for r in caplog.records if r.message == "a background task fails"]
    assert len(faults) == 1
    master.choose(tiny="two")
    assert master.bundles.due()
    assert master.counts.background.healthy()["share-bundles"]


def test_a_renewal_that_failed_is_due_again_after_pauses_that_double(
    make: Callable[..., Master], caplog: pytest.LogCaptureFixture
) -> None:
    master = make()
    master.choose(tiny="two")
    for pause_s in (0.25, 0.5, 1.0):
        assert master.bundles.due()
        master.bundles.ended(succeeded=False)
        master.now_s += pause_s * 0.9
        assert not master.bundles.due()
        master.now_s += pause_s * 0.2
    assert not master.counts.background.healthy()["renew-workers"]
    assert master.bundles.due()
    master.bundles.ended(succeeded=True)
    assert master.counts.background.healthy()["renew-workers"]
    assert master.counts.counted == 3 * ["renewal failed"] + ["renewal succeeded"]


def test_a_pointer_that_moves_is_followed_and_recorded_with_all_other_models(
    make: Callable[..., Master],
) -> None:
    master = make(watch_s=1.0)
    master.choose(tiny="one", other="other")
    assert master.bundles.due()
    (master.root / POINTER).write_text("two")
    master.now_s += 1.1
    assert master.bundles.due()
    assert master.current() == ["two", "other"]
    assert master.bundles.held.configured == (master.root / "two", bundle_id(master.root / "two"))
    one, two, other = (str(master.root / name) for name in ("one", "two", "other"))
    assert read_desired(master.state) == Desired(
        two, {"tiny": DesiredModel(two, previous=one), "other": DesiredModel(other)}
    )
    assert master.counts.counted == ["swap activated"]


def test_a_pointer_that_a_worker_followed_first_leaves_what_it_was_told_since(
    make: Callable[..., Master],
) -> None:
    master = make(watch_s=1.0)
    (master.root / POINTER).write_text("two")
    master.choose(configured="two", tiny="two", other="other")
    assert master.bundles.due()
    assert master.current() == ["two", "other"]


def test_a_pointer_to_a_bundle_that_is_held_makes_workers_old_too(
    make: Callable[..., Master],
) -> None:
    master = make(watch_s=1.0)
    master.choose(tiny="two")
    assert master.bundles.due()
    master.bundles.ended(succeeded=True)
    (master.root / POINTER).write_text("two")
    master.now_s += 1.1
    assert master.bundles.due(), "or they would ignore what is recorded from now on"


def test_a_pointer_to_a_refused_bundle_keeps_no_choice_back(make: Callable[..., Master]) -> None:
    master = make(watch_s=1.0)
    (master.root / POINTER).write_text("broken")
    master.choose(tiny="one", other="other")
    assert master.bundles.due()
    assert master.current() == ["one", "other"]
    assert not master.counts.background.healthy()["share-bundles"]
    (master.root / POINTER).write_text("two")
    assert master.bundles.due()
    assert master.current() == ["two", "other"]


def test_a_bundle_that_starts_threads_is_not_shared(
    make: Callable[..., Master],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    master = make()
    monkeypatch.setattr(shared_bundles, "n_threads", lambda: 2)
    master.choose(tiny="two")
    with caplog.at_level(logging.ERROR):
        assert not master.bundles.due()
    assert master.held() == {"one"}
    assert "2 threads run" in caplog.text
