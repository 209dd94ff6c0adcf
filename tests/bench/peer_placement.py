"""OpenStack Placement in this process, on SQLite: a candidate is asked for, then written. Its own interpreter runs it.

Prints seconds a claim as JSON. ``HOSTS`` hosts of 8 switches with a GPU and a NIC each: 25 providers a host. A claim is
a GET of one allocation candidate and a PUT of it, as Nova does; giving back is a DELETE, not timed.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path

HOSTS, SWITCHES, ROUNDS = 10, 8, 30
GPU, NIC, SWITCH = "CUSTOM_GPU", "CUSTOM_RNIC", "CUSTOM_SWITCH"
CLAIMS = {
    "1 GPU": f"resources1={GPU}:1",
    "1 GPU and 1 NIC on one switch": (
        f"resources1={GPU}:1&resources2={NIC}:1&required_SW={SWITCH}&same_subtree=1,2,_SW&group_policy=none"
    ),
}


def main():
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {
            "OS_PLACEMENT_DATABASE__CONNECTION": f"sqlite:///{Path(folder, 'placement.db')}",
            "OS_PLACEMENT_DATABASE__SYNC_ON_STARTUP": "true",
            "OS_API__AUTH_STRATEGY": "noauth2",
        }
        sys.argv = sys.argv[:1]
        from placement.wsgi import init_application
        from webob import Request

        application = init_application()
        logging.disable(logging.INFO)

        def ask(method, path, body=None):
            request = Request.blank(path, method=method)
            request.headers["x-auth-token"] = "admin"
            request.headers["OpenStack-API-Version"] = "placement 1.39"
            request.headers["accept"] = "application/json"
            if body is not None:
                request.content_type = "application/json"
                request.body = json.dumps(body).encode()
            response = request.get_response(application)
            if response.status_int >= 400:
                raise SystemExit(f"{method} {path}: {response.status} {response.text}")
            return response.json if response.body else None

        build(ask)
        print(json.dumps({name: measure(ask, query) for name, query in CLAIMS.items()}), flush=True)


def build(ask):
    for name in (GPU, NIC):
        ask("PUT", f"/resource_classes/{name}")
    ask("PUT", f"/traits/{SWITCH}")

    def provider(name, parent=None):
        made = {"name": name, "uuid": str(uuid.uuid4()), **({"parent_provider_uuid": parent} if parent else {})}
        ask("POST", "/resource_providers", made)
        return made["uuid"]

    for host in range(HOSTS):
        root = provider(f"host{host}")
        for number in range(SWITCHES):
            switch = provider(f"host{host}-switch{number}", root)
            traits = {"resource_provider_generation": 0, "traits": [SWITCH]}
            ask("PUT", f"/resource_providers/{switch}/traits", traits)
            for name in (GPU, NIC):
                device = provider(f"host{host}-{name}{number}", switch)
                inventory = {"resource_provider_generation": 0, "inventories": {name: {"total": 1}}}
                ask("PUT", f"/resource_providers/{device}/inventories", inventory)


def measure(ask, query):
    times = []
    for _ in range(ROUNDS):
        consumer = str(uuid.uuid4())
        start = time.perf_counter()
        found = ask("GET", f"/allocation_candidates?{query}&limit=1")["allocation_requests"][0]
        body = {
            "allocations": found["allocations"],
            "mappings": found["mappings"],
            "project_id": "p",
            "user_id": "u",
            "consumer_generation": None,
            "consumer_type": "INSTANCE",
        }
        ask("PUT", f"/allocations/{consumer}", body)
        times.append(time.perf_counter() - start)
        ask("DELETE", f"/allocations/{consumer}")
    return statistics.median(times)


if __name__ == "__main__":
    main()
