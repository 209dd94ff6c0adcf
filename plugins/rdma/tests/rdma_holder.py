"""The holder of a lease in a process of its own: opens its NIC with the ticket, and does as its input says."""

from __future__ import annotations

import json
import sys

from hal.api.held import open_lease
from hal.interfaces.deadline import Deadline
from hal.interfaces.rnic import ALL_ACCESS

WITHIN = 20.0


def say(**words):
    print(json.dumps(words), flush=True)


def main(ticket):
    lease = open_lease(ticket)
    nic = lease.open()
    region = nic.register(4096, ALL_ACCESS)
    endpoint = nic.endpoint(rnr_timeout_seconds=5)
    say(address=region.address, rkey=region.rkey.hex(), endpoint=endpoint.address.hex())
    connection, others = None, []
    for line in sys.stdin:
        asked = json.loads(line)
        match asked.pop("do"):
            case "connect":
                connection = endpoint.connect(bytes.fromhex(asked["endpoint"]))
                say(done=True)
            case "join":
                another = nic.endpoint(rnr_timeout_seconds=5)
                others.append(another.connect(bytes.fromhex(asked["endpoint"])))
                say(endpoint=another.address.hex())
            case "read":
                say(data=bytes(region.view[asked["at"] :][: asked["length"]]).hex())
            case "count":
                address, rkey = asked["address"], bytes.fromhex(asked["rkey"])
                found = [
                    connection.fetch_add(address, rkey, 1).wait(Deadline.after(WITHIN)) for _ in range(asked["rounds"])
                ]
                say(found=found)
            case "append":
                say(taken=append(connection, asked["address"], bytes.fromhex(asked["rkey"]), asked["rounds"]))
    lease.close()


def append(connection, address, rkey, rounds):
    """Push this process's turns onto a word by compare-and-swap; what each turn replaced."""
    taken, expected = [], 0
    for _ in range(rounds):
        while (found := connection.compare_and_swap(address, rkey, expected, expected + 1).wait()) != expected:
            expected = found
        taken.append(expected)
        expected += 1
    return taken


if __name__ == "__main__":
    main(sys.argv[1])
