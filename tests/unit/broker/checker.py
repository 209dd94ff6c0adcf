"""An independent reader of the journal: SQLite and JSON, and nothing of hal. Run it on any journal: checker.py FILE."""

from __future__ import annotations

import json
import sqlite3
import sys


def read(path):
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return [
            (n, json.loads(body)) for n, body in connection.execute("SELECT revision, body FROM records ORDER BY 1")
        ]
    finally:
        connection.close()


def check(path):
    """Return (live leases: id -> (fence, devices), fenced device ids); raise AssertionError for a broken history."""
    live, holder, fenced, fences = {}, {}, set(), []
    begun = 0
    for expected, (revision, record) in enumerate(read(path), 1):
        assert revision == expected, f"revision {revision} follows {expected - 1}"
        kind = record["type"]
        if kind == "journal-begun":
            begun = record["fence"]
        elif kind == "lease-granted":
            lease = record["lease"]
            assert lease["id"] not in live, f"{lease['id']} is granted twice"
            assert lease["fence"] > max([begun, *fences]), f"the fence of {lease['id']} does not grow"
            fences.append(lease["fence"])
            for device in lease["devices"]:
                assert device["id"] not in holder, f"{device['id']} is doubled at revision {revision}"
                holder[device["id"]] = lease["id"]
            live[lease["id"]] = (lease["fence"], sorted(device["id"] for device in lease["devices"]), "bound")
        elif kind in ("lease-prepared", "lease-releasing", "lease-suspected"):
            fence, devices, _ = live[record["lease"]]
            live[record["lease"]] = (fence, devices, kind.removeprefix("lease-"))
        elif kind == "lease-ended":
            _, devices, state = live.pop(record["lease"])
            assert state in ("releasing", "suspected") or "boot" in record["proof"], f"ended while {state}"
            kept = record.get("fenced", {})
            assert sorted([*record["freed"], *kept]) == devices
            fenced |= set(kept)
            for device in record["freed"]:
                assert holder.pop(device) == record["lease"]
        elif kind == "device-freed":
            fenced.remove(record["device"])
            del holder[record["device"]]
    assert set(holder) == fenced | {device for _, devices, _ in live.values() for device in devices}
    return live, fenced


if __name__ == "__main__":
    print(check(sys.argv[1]))
