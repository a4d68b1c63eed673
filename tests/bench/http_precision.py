"""How precise is a running service on a data set's test split, asked over plain HTTP?

    python -m tests.bench.http_precision --url http://127.0.0.1:8000 \
        --data models/samples/gutenberg-lcsh

Sends one query a request. Prints P@1, P@3 and P@5 at `--effort`, and the recall@10 of this effort
against the service's own `exact`. It needs only the address of the service, which must be on this
machine, so it checks the bundle's claims independently.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from models.data.dataset import point_texts
from models.data.formats import open_dataset
from models.quality.metrics import precision_at_k

K = 10


def main() -> int:
    """Send every test point twice, at `--effort` and at `exact`, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--data", type=Path, default=Path("models/samples/gutenberg-lcsh"))
    parser.add_argument("--fields", default="title", choices=["title", "title+content"])
    parser.add_argument("--effort", default="balanced")
    args = parser.parse_args()
    if httpx.URL(args.url).host not in ("127.0.0.1", "localhost"):
        parser.error("--url must be on this machine")
    dataset = open_dataset(args.data)
    if dataset.test is None:
        parser.error(f"{args.data} has no test split")
    texts = point_texts(dataset.test, args.fields)
    rows = {uid: row for row, uid in enumerate(dataset.labels.uids)}
    with httpx.Client(base_url=args.url) as client:
        item_filter = client.get("/v1/info").raise_for_status().json()["item_filter"]
        item_ids = dataset.test.uids if item_filter else [None] * len(texts)
        ranked = ask(client, texts, item_ids, args.effort, rows)
        exact = ask(client, texts, item_ids, "exact", rows)
    for k in (1, 3, 5):
        print(f"P@{k} {100 * precision_at_k(ranked, dataset.test.labels, k):.2f}")
    recall = (ranked[:, :, None] == exact[:, None, :]).any(axis=1).mean()
    print(f"recall@{K} against exact {recall:.4f} ({len(texts):,} queries, effort {args.effort})")
    return 0


def ask(
    client: httpx.Client,
    texts: list[str],
    item_ids: Sequence[str | None],
    effort: str,
    rows: dict[str, int],
) -> NDArray[np.int64]:
    """Label rows (n, K) of the answers to n texts; `rows` gives the row of a label's id."""
    ranked = np.empty((len(texts), K), np.int64)
    for i, (text, item_id) in enumerate(zip(texts, item_ids, strict=True)):
        body = {"query": text, "k": K, "effort": effort}
        if item_id is not None:
            body["item_id"] = item_id
        answer = client.post("/v1/recommend", json=body).raise_for_status().json()
        ranked[i] = [rows[label["id"]] for label in answer["results"][0]["labels"]]
    return ranked


if __name__ == "__main__":
    sys.exit(main())
