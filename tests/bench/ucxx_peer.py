"""ucxx's asyncio endpoints between two processes: half of a round trip of 64 B. Run by an interpreter with ucxx."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import time

ROUNDS, BYTES = 500, 64


def serve(port_pipe):
    import numpy as np
    import ucxx

    async def main():
        finished = asyncio.Event()

        async def echo(endpoint):
            buffer = np.zeros(BYTES, np.uint8)
            for _ in range(ROUNDS):
                await endpoint.recv(buffer)
                await endpoint.send(buffer)
            finished.set()

        ucxx.init()
        listener = ucxx.create_listener(echo)
        port_pipe.send(listener.port)
        await finished.wait()

    asyncio.run(main())


async def measure(port):
    import numpy as np
    import ucxx

    ucxx.init()
    endpoint = await ucxx.create_endpoint("127.0.0.1", port)
    buffer, times = np.ones(BYTES, np.uint8), []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        await endpoint.send(buffer)
        await endpoint.recv(buffer)
        times.append((time.perf_counter() - start) / 2)
    return statistics.median(times)


if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,), daemon=True)
    process.start()
    print(json.dumps({"one_way_seconds": asyncio.run(measure(ours.recv()))}), flush=True)
    process.join(10)
