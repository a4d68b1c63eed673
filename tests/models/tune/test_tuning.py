"""A tuning from end to end on a tiny run: chosen, sealed, checked, resumed, or refused."""

import json
from dataclasses import replace

import pytest

from models import stages
from models.config import load_config
from models.errors import RunError, TuneError
from models.runs import read_run
from models.tune.goal import Goal
from models.tune.subject import Judge
from models.tune.tuning import Request, kinds_for
from service.bundle.verify import read_manifest, resolve
from tests.support.tiny_job import write_tiny_job

EASY = Goal(p99_us=1e6, recall=0.9)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    job = stages.TrainingJob.open(write_tiny_job(folder), folder / "var")
    stages.run_train(job)
    return job


@pytest.fixture(scope="module")
def report(job, brief_timing):
    return stages.run_tune(job, Request(EASY, kinds=("hnsw", "flat")))


@pytest.fixture(scope="module")
def bundle(job, report):
    return resolve(job.bundles)


def test_the_sealed_bundle_serves_the_chosen_index_and_says_what_it_was_to_hold(bundle, report):
    manifest = read_manifest(bundle)
    build = report.chosen.candidate.build
    assert manifest.index.kind == build.kind
    assert manifest.index.params == dict(build.settings)
    points = {point.name: point for point in manifest.operating_points}
    assert list(points) == ["fast", "balanced", "thorough", "exact"]
    assert points["balanced"].params == dict(report.chosen.candidate.params)
    assert points["balanced"].recall_at_10 >= 0.9
    assert points["exact"].params == {}
    assert manifest.goal.p99_us == 1e6
    assert manifest.goal.recall_at_10 == 0.9
    assert manifest.quality is not None


def test_the_card_says_what_was_asked_for(bundle):
    card = (bundle / "MODEL_CARD.md").read_text()
    assert "balanced was tuned to hold p99 <= 1e+06 us, recall@10 >= 0.9." in card


def test_efforts_rise(bundle):
    recalls = [point.recall_at_10 for point in read_manifest(bundle).operating_points]
    assert recalls[0] <= recalls[1] <= recalls[2] <= recalls[3] + 1e-3


def test_the_run_keeps_the_front_as_json_and_as_a_page(job, report):
    folder = job.run.folder / "tune"
    record = json.loads((folder / "tune.json").read_text())
    assert record["chosen"]["candidate"] == report.chosen.as_json()["candidate"]
    assert "<svg" in (folder / "tune.html").read_text()


def test_a_second_tuning_measures_and_builds_nothing_twice(job, report, monkeypatch):
    measured = []
    plain = Judge.measure

    def counted(self, searched, n, *, carefully):
        measured.append((searched.candidate, n, carefully))
        return plain(self, searched, n, carefully=carefully)

    monkeypatch.setattr(Judge, "measure", counted)
    monkeypatch.setattr("models.tune.workbench.build_label_index", lambda *_: pytest.fail("built"))
    again = stages.run_tune(job, Request(EASY, kinds=("hnsw", "flat")))
    # What holds is confirmed anew, and so are the four points that are sealed; no more.
    assert len(measured) <= 4
    assert all(n == 60 and carefully for _, n, carefully in measured)
    assert again.last == report.last


def test_a_killed_tuning_goes_on_from_its_measurements(job, report, monkeypatch):
    counted = []
    plain = Judge.measure

    def dies(self, searched, n, *, carefully):
        if len(counted) == 7:
            raise KeyboardInterrupt
        counted.append(searched.candidate)
        return plain(self, searched, n, carefully=carefully)

    # Another seed of the split's order is not needed: other kinds of the same run are new.
    (ledger,) = (job.run.folder / "tune").glob("*/measurements.jsonl")
    ledger.unlink()
    monkeypatch.setattr(Judge, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        stages.run_tune(job, Request(EASY, kinds=("hnsw",)))
    assert len(ledger.read_text().splitlines()) == 7
    first = list(counted)
    counted.clear()
    monkeypatch.setattr(
        Judge, "measure", lambda *a, **k: (counted.append(a[1].candidate), plain(*a, **k))[1]
    )
    stages.run_tune(job, Request(EASY, kinds=("hnsw",)))
    assert not set(first) & set(counted[:-4])


def test_what_nothing_holds_is_said_in_a_sentence_and_not_sealed(job, report):
    sealed = sorted(job.bundles.iterdir())
    refused = stages.run_tune(job, Request(Goal(p99_us=0.001, recall=0.9), kinds=("flat",)))
    assert refused.chosen is None
    assert "no index holds p99 <= 0.001 us, recall@10 >= 0.9: the nearest, flat" in refused.verdict
    assert "us over" in refused.verdict
    assert sorted(job.bundles.iterdir()) == sealed
    assert (job.run.folder / "tune" / "tune.html").is_file()


def test_a_bundle_is_checked_against_its_own_goal_or_another(job, bundle):
    assert stages.run_check(job, bundle, None).broken is None
    checked = stages.run_check(job, bundle, Goal(p99_us=0.001))
    assert "balanced of" in checked.broken
    assert "p99 is" in checked.broken
    assert [line.split()[0] for line in checked.text.splitlines()[3:7]] == [
        "fast",
        "balanced",
        "thorough",
        "exact",
    ]


def test_a_bundle_finds_its_own_run_again(job, bundle):
    var = job.bundles.parent.parent
    assert stages.job_of_bundle(bundle, var).run.folder == job.run.folder
    with pytest.raises(RunError, match="holds no run of this very configuration"):
        stages.job_of_bundle(bundle, var / "elsewhere")


def test_a_bundle_of_other_data_is_not_checked(job, bundle):
    other = replace(job, dataset=replace(job.dataset, sha256="0" * 64))
    with pytest.raises(TuneError, match="of other data"):
        stages.run_check(other, bundle, None)


def test_a_run_folder_is_as_good_as_its_configuration(job):
    var = job.bundles.parent.parent
    again = stages.TrainingJob.of_run(job.run.folder, var)
    assert again.run == read_run(job.run.folder)
    assert (again.bundles, again.parts.sha256) == (job.bundles, job.parts.sha256)


def test_kinds_that_do_not_exist_are_refused_by_name(tmp_path):
    config = write_tiny_job(tmp_path)
    assert set(kinds_for(config, ())) >= {"hnsw", "flat"}
    assert kinds_for(config, ("flat",)) == ["flat"]
    with pytest.raises(TuneError, match="--kinds ball-tree"):
        kinds_for(load_config(tmp_path / "tiny.toml"), ("ball-tree",))


def test_a_memory_is_only_tried_beside_scores_like_those_it_was_weighed_beside(tmp_path):
    by_vectors = write_tiny_job(tmp_path, "memory.kind=auto")
    assert "label-tree" not in kinds_for(by_vectors, ())
    assert "pq-fastscan" in kinds_for(by_vectors, ())
    learned = ("method.kind=elias", "index.kind=learned-graph", "memory.kind=auto")
    assert kinds_for(write_tiny_job(tmp_path, *learned), ()) == ["learned-graph"]
