"""For those who want users and a web page rather than a rate: one user type for Locust.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000

Closed loop: each user waits for its answer and thinks before asking again, so a slow server is
asked less. Use `python -m loadtest` for latencies to publish.
"""

import random
from pathlib import Path

from locust import HttpUser, between, task


class Reader(HttpUser):
    """Asks for labels, reads for a second or so, and asks again."""

    wait_time = between(0.5, 2.0)

    def on_start(self) -> None:
        """Locust: a user appears."""
        # Not through the package: Locust puts only this folder on the import path.
        queries = Path(__file__).with_name("queries.txt")
        self.texts = queries.read_text(encoding="utf-8").splitlines()

    @task
    def recommend(self) -> None:
        """Post one query; anything but a 200 with results is a failure in Locust's counts."""
        body = {"query": random.choice(self.texts), "k": 10, "effort": "balanced"}
        with self.client.post("/v1/recommend", json=body, catch_response=True) as response:
            if response.status_code == 200 and not response.json().get("results"):
                response.failure("a 200 without results")
