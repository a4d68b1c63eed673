"""Builds the second stage of a run: trees, what their features read, and a calibration.

Trees learn from examples out of fold. Validation points, which they never saw, then say whether the
stage pays, and calibrate it.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from models.data.tokens import TokenizedTexts
from models.index import calibrate
from models.index.efforts import recall_targets
from models.index.memory import Memory, search_widths, write_for_features
from models.quality.ranking import EmbeddedSet, top_products
from models.rerank.choice import judge, learn
from models.rerank.examples import Examples, Scorer, usable_features
from models.rerank.knowledge import write_knowledge
from models.rerank.tree_graph import write_tree_graph
from models.runs import Run
from service.bundle.claims import RERANK_DEPTH
from service.bundle.manifest import EFFORTS, MemoryInfo, RerankInfo
from service.core.index.memory import MEMORY_EF_SEARCH
from service.core.rerank.features import NEIGHBOURS
from service.core.rerank.reranker import reorder
from service.core.types import Hits

log = logging.getLogger(__name__)

GRAPH_FILE: Final = "rerank.onnx"
CALIBRATION: Final = "rerank.calibration.json"
QUICKEST: Final = EFFORTS[0]
"""The effort that goes without trees."""


@dataclass(frozen=True, slots=True)
class RerankOutcome:
    """The record of the choice, and whether the stage is used.

    `memory` is then the memory's entry for the manifest: the trees read it, and no score is blended
    with it. None without a memory.
    """

    record: dict[str, Any]
    used: bool
    memory: MemoryInfo | None = None


def build_rerank(
    scorer: Scorer,
    validation: EmbeddedSet,
    texts: TokenizedTexts,
    examples: Callable[[list[str]], Examples | None],
    before: NDArray[np.int64],
    run: Run,
) -> RerankOutcome:
    """Grow the trees, compare them with the ranking `before` (n, k), write the stage if it is used.

    `texts` are the tokens of the validation points. `examples` gives those of the training points
    with these features, None where the trees learn from validation points.
    """
    config, seed = run.config.rerank, run.config.seed
    names = usable_features(scorer.memory is not None)
    judged = scorer.describe(names, config.depth, validation, texts)
    learnt = examples(names)
    booster, scores = learn(learnt, judged, names, config, seed)
    found = Hits(*top_products(validation.queries, scorer.vectors, calibrate.DEPTH))
    answers = reorder(found, Hits(judged.rows, judged.logits), scores)
    choice = judge(before, answers.rows, validation, config.kind == "trees")
    log.info(
        "a second stage gains %.2f +- %.2f nDCG@5, P@1 %.2f to %.2f: %s",
        *(choice.gain, choice.standard_error, *choice.p_at_1),
        "kept" if choice.used else "left out",
    )
    if not choice.used:
        return RerankOutcome(asdict(choice), used=False)
    curve, errors = calibrate.calibrate(answers, validation, logit_bias=0.0)
    calibrate.write_calibration(run.folder / CALIBRATION, curve)
    write_tree_graph(booster, len(names), run.folder / GRAPH_FILE)
    n_learnt = len((judged if learnt is None else learnt).rows)
    info = RerankInfo(
        graph=GRAPH_FILE,
        files=write_knowledge(scorer.knowledge, run.folder),
        features=names,
        depth=config.depth,
        trees=booster.num_trees(),
        leaves=config.leaves,
        calibration=errors.model_copy(update={"file": CALIBRATION}),
        params={
            "scores": config.scores,
            "queries": n_learnt,
            "rate": config.rate,
            "p_at_1_before": round(choice.p_at_1[0], 2),
            "p_at_1": round(choice.p_at_1[1], 2),
            "p_at_5_before": round(choice.p_at_5[0], 2),
            "p_at_5": round(choice.p_at_5[1], 2),
        },
    )
    params = {name: {RERANK_DEPTH: config.depth} for name in EFFORTS if name != QUICKEST}
    memory = None
    if scorer.memory is not None:
        memory = _write_memory(scorer.memory, params, validation, run)
    record = asdict(choice) | {"info": info.model_dump(), "params": params}
    return RerankOutcome(record, True, memory)


def _write_memory(
    memory: Memory, params: dict[str, dict[str, int]], validation: EmbeddedSet, run: Run
) -> MemoryInfo:
    """Write the memory for the trees; adds the width of its search to the `params` of efforts."""
    info = write_for_features(memory, run.config, NEIGHBOURS, run.folder)
    targets = recall_targets(run.config.memory)
    recalls = {name: targets[name] for name in params if name in targets}
    for name, width in search_widths(run.folder, memory, info, recalls, validation).items():
        params[name][MEMORY_EF_SEARCH] = width
    return info
