"""One tiny job, trained and sealed once for all tests that only read it."""

import pytest

from models import stages
from tests.support.tiny_job import write_tiny_bert, write_tiny_job


@pytest.fixture(scope="session")
def tiny_job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return stages.TrainingJob.open(write_tiny_job(folder), folder / "var")


@pytest.fixture(scope="session")
def sealed(tiny_job):
    """The bundle that the tiny job sealed."""
    return stages.run_all(tiny_job.run.config, tiny_job.bundles.parent.parent)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A source folder with a tiny random transformer; never write into it."""
    return write_tiny_bert(tmp_path_factory.mktemp("source") / "bert")


@pytest.fixture(scope="module")
def brief_timing():
    """Tunings time each search once, and sweep no caches: for tests that compare no times."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"PASSES": 1, "CAREFUL_PASSES": 1, "SWEPT_BYTES": 8}.items():
            patch.setattr(f"models.tune.timing.{name}", value)
        yield
