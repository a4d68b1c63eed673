"""Made-up rows of a comparison, for tests of what is done with them."""

from models.compare.record import ComparedData, Provenance, Row

SUBJECT = ComparedData(
    data="shelf",
    data_sha256="ab" * 32,
    fields="title",
    n_train=1000,
    n_test=200,
    n_labels=60,
    propensity_a=0.55,
    propensity_b=1.5,
)
RUN = Provenance("python -m models compare --data shelf", "2 CPUs", "2026-01-02", "abc123")
FIGURES = ("p1", "p3", "p5", "ndcg3", "ndcg5", "psp1", "psp3", "psp5", "r100")


def made_up_row(system="Parabel", p1=26.5, digest="d1", **changes):
    fields = {
        "system": system,
        "version": "omikuji 0.5.2",
        "digest": digest,
        "settings": {"peer": {"n_trees": 3}},
        "metrics": {name: p1 / (place + 1) for place, name in enumerate(FIGURES)},
        "train_seconds": 12.34,
        "train_cpu_seconds": None,
        "model_bytes": 12_300_000,
        "query_ms_p50": 0.512,
        "query_ms_p99": 1.5,
        "measured_by": RUN,
    }
    return Row(**fields | changes)
