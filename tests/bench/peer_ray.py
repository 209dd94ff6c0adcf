"""Ray's placement groups on this machine: made, ready, removed. Run by an interpreter that has it.

Prints seconds a claim as JSON: the median and the mean, since a group may wait for Ray's next look at its queue. Ray
knows amounts of resources and no switches: a GPU "and a NIC" is a bundle of both, anywhere on the node.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time

GPUS, ROUNDS = 64, 40
CLAIMS = {"1 GPU": [{"GPU": 1}], "1 GPU and 1 NIC on one switch": [{"GPU": 1, "rnic": 1}]}


def main():
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    import ray
    from ray.util import placement_group, remove_placement_group

    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        ray.init(
            num_cpus=1,
            num_gpus=GPUS,
            resources={"rnic": GPUS},
            include_dashboard=False,
            logging_level="error",
            log_to_driver=False,
            object_store_memory=100 << 20,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        try:
            found = {}
            for name, bundles in CLAIMS.items():
                times = []
                for _ in range(ROUNDS):
                    start = time.perf_counter()
                    group = placement_group(bundles, strategy="STRICT_PACK")
                    if not group.wait(60):
                        raise SystemExit(f"Ray did not grant {name} within a minute")
                    times.append(time.perf_counter() - start)
                    remove_placement_group(group)
                found[name] = statistics.median(times)
                found[f"{name}, mean"] = statistics.mean(times)
            print(json.dumps(found), flush=True)
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
