"""MODEL_CARD.md: tells people what a bundle holds and how well it does.

It is written from the manifest alone, so the two cannot disagree.
"""

from models.tune.goal import Goal
from service.bundle.claims import RERANK_DEPTH
from service.bundle.manifest import CalibrationInfo, Manifest


def model_card(manifest: Manifest) -> str:
    """The card as Markdown."""
    counts = ", ".join(f"{value:,} {name}" for name, value in manifest.data.counts.items())
    lines = [
        f"# {manifest.name}",
        "",
        f"Sealed {manifest.created} by Astrolabe {manifest.code.version} "
        f"({manifest.code.revision}).",
        f"Trained on {manifest.data.name} ({counts}; SHA-256 {manifest.data.sha256}).",
        *_started_from(manifest),
        f"Encoder: {manifest.encoder.dim} dimensions, {manifest.encoder.served}; at most "
        f"{manifest.tokenizer.max_tokens} tokens are read.{_prefixes(manifest)}",
        f"Index: {manifest.index.kind} over {manifest.index.n_rows:,} labels.",
        *_memory(manifest),
        *_rerank(manifest),
        *_filter(manifest),
        *_folded(manifest),
        "",
        *_quality(manifest),
        *_points(manifest),
        *_variants(manifest),
        *_scores(manifest),
    ]
    return "\n".join(lines)


def _started_from(manifest: Manifest) -> list[str]:
    path = manifest.config.get("train", {}).get("start_from")
    return [f"Training went on from {path}."] if path else []


def _prefixes(manifest: Manifest) -> str:
    spec = manifest.tokenizer
    if not spec.query_prefix and not spec.label_prefix:
        return ""
    return f" Queries are read behind {spec.query_prefix!r}, labels behind {spec.label_prefix!r}."


def _memory(manifest: Manifest) -> list[str]:
    memory = manifest.memory
    if memory is None:
        return []
    if not memory.weight:
        return [f"Memory: {memory.n_rows:,} training queries, which the second stage reads."]
    return [
        f"Memory: {memory.n_rows:,} training queries; the labels of a query's {memory.neighbours} "
        f"nearest are {100 * memory.weight:g} % of its scores."
    ]


def _rerank(manifest: Manifest) -> list[str]:
    rerank = manifest.rerank
    if rerank is None:
        return []
    efforts = [point.name for point in manifest.operating_points if RERANK_DEPTH in point.params]
    line = (
        f"Second stage: {rerank.trees} trees re-order the first labels at {', '.join(efforts)}. "
        "Figures of operating points below are of the search alone."
    )
    figures = {name: rerank.params.get(name) for name in ("p_at_1", "p_at_5")}
    if None not in figures.values():
        line += (
            f" On validation queries the trees move P@1 from {rerank.params['p_at_1_before']} to "
            f"{figures['p_at_1']} and P@5 from {rerank.params['p_at_5_before']} to "
            f"{figures['p_at_5']}, by exact search."
        )
    return [line]


def _filter(manifest: Manifest) -> list[str]:
    spec = manifest.filter
    if spec is None:
        return []
    what = "the item itself and pairs left out of the data" if spec.own_item else "pairs left out"
    return [f"Answers that name an item leave out {what} ({spec.n_pairs:,} pairs)."]


def _folded(manifest: Manifest) -> list[str]:
    folded = manifest.folded
    if folded is None:
        return []
    return [
        f"Folded into {folded.base[:12]}: {folded.n_added:,} labels added, {folded.n_updated:,} "
        f"updated, {folded.n_removed:,} removed, up to change {folded.seq:,}. "
        f"All folds so far gave {folded.n_added_in_all:,} labels the vector of their text. "
        "Quality, precisions and calibration below are those of the bundle that was trained."
    ]


def _quality(manifest: Manifest) -> list[str]:
    quality = manifest.quality
    if quality is None:
        return []
    rows = [
        f"| {name} | {value:.2f} | {_number(quality.errors, name)} "
        f"| {_number(quality.unseen, name)} |"
        for name, value in quality.metrics.items()
    ]
    return [
        "## Quality",
        "",
        f"{quality.n_queries:,} queries of the {quality.split} split at effort {quality.effort}, "
        f"in percent; propensities with A = {quality.propensity_a}, B = {quality.propensity_b}. "
        "Head, torso and tail are the labels that hold the first, second and last third of the "
        "training positives. Standard errors let points of a series vary together. "
        f"{quality.n_seen or 0:,} points share their series with a training point; the last column "
        "is without them.",
        "",
        "| figure | percent | standard error | without them |",
        "|---|---|---|---|",
        *rows,
        "",
    ]


def _number(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.2f}" if name in figures else ""


def _points(manifest: Manifest) -> list[str]:
    rows = [
        f"| {point.name} | {point.recall_at_10:.4f} | {point.p_at_1:.2f} | {point.p_at_5:.2f} "
        f"| {point.search_us_p50:.0f} | {point.search_us_p99:.0f} |"
        for point in manifest.operating_points
    ]
    return [
        "## Operating points",
        "",
        "On validation queries, one at a time on one thread "
        f"({manifest.operating_points[0].machine}).",
        *_goal(manifest),
        "",
        "| effort | recall@10 against exact | P@1 | P@5 | search p50, us | p99, us |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _goal(manifest: Manifest) -> list[str]:
    if manifest.goal is None:
        return []
    return [f"{manifest.defaults.effort} was tuned to hold {Goal.of(manifest.goal)}."]


def _variants(manifest: Manifest) -> list[str]:
    measured = manifest.encoder.measured
    if not measured:
        return []
    rows = [
        f"| {name}{'' if name in manifest.encoder.variants else ' (not in here)'} "
        f"| {found.bytes / 1e6:.1f} | {found.p_at_1:.2f} | {found.p_at_1_change:+.2f} "
        f"| {100 * found.top1_agreement:.2f} | {found.encode_us_p50:.0f} |"
        for name, found in measured.items()
    ]
    return [
        "## Precisions of the encoder",
        "",
        f"On validation queries by exact search, one thread; {manifest.encoder.served} serves, and "
        "all other figures are with it.",
        "",
        "| precision | MB | P@1 | change | first label as torch's, % | one query p50, us |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def _scores(manifest: Manifest) -> list[str]:
    calibration = manifest.calibration
    if calibration.file is None:
        return ["Scores are raw inner products.", ""]
    return [
        "## Scores",
        "",
        f"Probabilities by {calibration.kind} calibration; expected calibration error "
        f"{calibration.ece_before:.4f} before and {calibration.ece_after:.4f} after (held out), "
        "over the first ten labels together.",
        *_first_label(calibration),
        *_reranked_scores(manifest),
        "",
    ]


def _reranked_scores(manifest: Manifest) -> list[str]:
    if manifest.rerank is None:
        return []
    calibration = manifest.rerank.calibration
    return [
        f"Where trees re-order, it is {calibration.ece_after:.4f} after.",
        *_first_label(calibration),
    ]


def _first_label(calibration: CalibrationInfo) -> list[str]:
    if calibration.first_before is None or calibration.first_after is None:
        return []
    return [
        f"Of the first label alone it is {calibration.first_before:.4f} before and "
        f"{calibration.first_after:.4f} after."
    ]
