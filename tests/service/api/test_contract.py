"""Schemathesis against the running service: no 5xx, and no answer that OpenAPI does not document.

Its command line and not its pytest plugin: that runs more phases, and stays out of our collection.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.service.fakes import SAFETY_S, fake_settings
from tests.service.filtered_bundle import write_filtered_bundle
from tests.service.live import live_service

pytestmark = pytest.mark.slow

EXAMPLES = 60
TIMEOUT_S = 400

# The fuzzer may ask for a deadline of 1 ms and then gets 504, documented and deserved. 405, 413
# and 415 are how a method, a size and a content type are refused.
CONFIG = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "504"]
negative_data_rejection.expected-statuses = [400, 401, 404, 405, 409, 413, 415, 422, 504]
positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 504]

# That shape, datatype and data of a tensor agree, that a text holds a visible character, and that
# dimensions are the model's is more than their schemas say.
[[operations]]
include-path-regex = "^/v2/|^/v1/embeddings$"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400, 404, 413, 504]

# Neither are that numbers fit 32 or 64 bits, and that the default model stays.
[[operations]]
include-path-regex = "^/v1/recommend/by-embedding$|^/v1/labels$|^/admin/models/"
checks.positive_data_acceptance.expected-statuses = ["2xx", 404, 409, 422, 504]
"""


# That `item_id` is as long a list as `query` is more than JSON Schema can say.
FILTERED = CONFIG.replace('["2xx", 404, 409, 504]', '["2xx", 404, 409, 422, 504]')


@pytest.fixture(scope="module", params=[CONFIG, FILTERED], ids=["bare", "filtered"])
def config(request: pytest.FixtureRequest) -> str:
    """What the fuzzer expects of the bundle that is served."""
    return str(request.param)


@pytest.fixture(scope="module")
def live_url(
    tiny_bundle: Path, config: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A real service on loopback, with limits small enough for a fuzzer to hit."""
    limits = fake_settings(
        max_text_chars=200,
        max_queries=4,
        lanes=2,
        admin_key="admin",
        bundle=tiny_bundle,
        state_dir=tmp_path_factory.mktemp("state"),
    )
    bundle = tiny_bundle
    if config == FILTERED:
        bundle = write_filtered_bundle(bundle, tmp_path_factory.mktemp("filtered") / "bundle")
    with live_service(bundle, limits) as address:
        yield address


def test_openapi_fuzz_finds_no_5xx_and_no_undocumented_answer(
    live_url: str, config: str, tmp_path: Path
) -> None:
    (tmp_path / "st.toml").write_text(config)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "st.toml", "run"]
    command += [f"{live_url}/openapi.json", "--wait-for-schema", str(SAFETY_S), "--checks", "all"]
    command += ["--header", "Authorization: Bearer admin"]
    command += ["--max-examples", str(EXAMPLES), "--seed", "1", "--no-color"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": ""},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    selected = re.search(r"Selected: (\d+)/(\d+)", done.stdout)
    assert selected is not None
    assert selected[1] == selected[2]
    assert int(selected[1]) >= 35
