"""A user for Locust, for people who want simulated users and a web page and not a fixed rate.

    locust -f loadtest/locustfile.py --host http://127.0.0.1:8000

If the service needs a key, export it as ASTROLABE_API_KEY. The load is closed loop: each user waits
for its answer and pauses before the next query, so a slow server gets fewer queries. Use `python -m
loadtest` for latencies to publish.
"""

import os
import random
from pathlib import Path

from locust import HttpUser, between, task


class Reader(HttpUser):
    """Sends a query, reads the answer for a second or so, and sends the next."""

    wait_time = between(0.5, 2.0)  # seconds; a choice, Locust needs one

    def on_start(self) -> None:
        """Read the queries; Locust calls this for every new user."""
        # Locust puts only this folder on the import path, so `loadtest` cannot be imported.
        queries = Path(__file__).with_name("queries.txt")
        self.texts = queries.read_text(encoding="utf-8").splitlines()
        if key := os.environ.get("ASTROLABE_API_KEY"):
            self.client.headers["Authorization"] = f"Bearer {key}"

    @task
    def recommend(self) -> None:
        """Post one query. Locust counts every answer but a 200 with results as a failure."""
        body = {"query": random.choice(self.texts), "k": 10, "effort": "balanced"}
        with self.client.post("/v1/recommend", json=body, catch_response=True) as response:
            if response.status_code == 200 and not response.json().get("results"):
                response.failure("a 200 without results")
