"""A folder of several bundles, a service over it, and what a client and an admin ask of it."""

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from service.api.app import create_app
from service.bundle.manifest import MANIFEST, POINTER
from service.observe.telemetry import Telemetry
from service.serving.deployment import open_changed_engine, open_engine, with_changes
from service.serving.fetching import fetched_folder
from service.serving.held import HeldBundles
from service.settings.places import BundleUrl
from tests.support.fakes import FakePredict, Running, fake_settings
from tests.support.tiny_bundle import seal

ADMIN = {"Authorization": "Bearer admin"}


def reseal(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a bundle with another manifest, hence another id."""
    shutil.copytree(source, folder)
    seal(folder, json.loads((folder / MANIFEST).read_text()) | changes)
    return folder


def write_bundle_root(root: Path, tiny: Path, flat: Path) -> Path:
    """Bundles `one` and `two` of one model, `other` of another, and a broken one; `one` is current.

    `tiny` and `flat` are the bundles that they are copied from.
    """
    reseal(tiny, root / "one")
    reseal(tiny, root / "two", created="2026-02-02T00:00:00Z")
    reseal(flat, root / "other", name="other")
    reseal(tiny, root / "broken")
    (root / "broken" / "labels.jsonl").write_bytes(b"{}")
    (root / POINTER).write_text("one")
    return root


@asynccontextmanager
async def serving_root(
    root: Path | BundleUrl, hold: Sequence[str] = (), **changes: Any
) -> AsyncIterator[Running]:
    """A started service over a folder of bundles, or its URL; the key of its admin is in `ADMIN`.

    With names in `hold` it is a worker whose master holds these bundles open, the first as current.
    """
    # So long a deadline that a machine with other work answers in time as well.
    values = {"device": "cpu", "admin_key": "admin", "request_timeout_ms": 30_000} | changes
    settings = fake_settings(bundle=root, **values)
    held = None
    if hold and isinstance(root, Path):
        engines = {(root / name).resolve(): open_engine(root / name, settings) for name in hold}
        first = next(iter(engines))
        held = HeldBundles(engines, (first, bundle_id(first)))
        current = with_changes(engines[first], settings)
    else:
        current = open_changed_engine(fetched_folder(root, settings), settings)
    app = create_app(current, settings, Telemetry(), held=held)
    async with app.app.router.lifespan_context(app.app):
        service = Running(app, FakePredict())
        async with service.client:
            yield service


async def ask(service: Running, model: str | None = None, **headers: str) -> dict[str, Any]:
    """The answer to one query, which must be 200."""
    body = {"query": "the white whale"} | ({"model": model} if model else {})
    answer = await service.recommend(body, **headers)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def admin(service: Running, verb: str, **body: Any) -> httpx.Response:
    """POST to /admin/bundles/{verb}."""
    return await service.client.post(f"/admin/bundles/{verb}", json=body, headers=ADMIN)


def bundle_id(folder: Path) -> str:
    """The id in a bundle's manifest."""
    return str(json.loads((folder / MANIFEST).read_text())["bundle_id"])
