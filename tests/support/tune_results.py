"""Made-up measurements, for tests of what is done with them."""

from models.tune.candidate import Build, Candidate, Measurement, Timing


def made_up(place=0, *, p99=100.0, recall=0.98, size=10_000_000, n_queries=1000, **changes):
    """The measurement of candidate number `place`."""
    fields = {
        "candidate": Candidate(Build("hnsw", (("m", 32),)), (("ef_search", place),)),
        "n_queries": n_queries,
        "recall": recall,
        "recall_error": 0.0,
        "p_at_1": 32.0,
        "p_at_5": 14.5,
        "p_at_1_loss": 0.0,
        "own_scores": False,
        "timing": Timing(p50=p99 / 2, p99=p99, clocked_p99=p99 * 3),
        "index_bytes": size,
    }
    return Measurement(**fields | changes)
