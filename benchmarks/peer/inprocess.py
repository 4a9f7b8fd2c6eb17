"""The same work without any service: `inprocess.py MODEL THREADS SECONDS PICTURE...` prints one line of JSON.

Each thread takes the next picture when it is done with one, as a script over a folder would.
"""

import itertools
import json
import sys
import threading
import time
from pathlib import Path

import work

WARM_UP = 10


def main(model, threads, seconds, paths):
    """Run, and print throughput, latencies and CPU time."""
    pictures = [Path(path).read_bytes() for path in paths]
    for number in range(WARM_UP):
        work.detect(pictures[number % len(pictures)], model)
    latencies_ms, numbers = [], itertools.count()
    cpu_s, started_s = time.process_time(), time.perf_counter()

    def loop():
        while time.perf_counter() - started_s < seconds:
            before_s = time.perf_counter()
            work.detect(pictures[next(numbers) % len(pictures)], model)
            latencies_ms.append((time.perf_counter() - before_s) * 1000)

    workers = [threading.Thread(target=loop) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall_s = time.perf_counter() - started_s
    ordered = sorted(latencies_ms)
    print(  # noqa: T201 - this line is what the ladder reads
        json.dumps(
            {
                "count": len(ordered),
                "warm_up": WARM_UP,
                "per_second": len(ordered) / wall_s,
                "p50_ms": ordered[len(ordered) // 2],
                "p99_ms": ordered[min(int(len(ordered) * 0.99), len(ordered) - 1)],
                "cpu_ms": (time.process_time() - cpu_s) * 1000 / len(ordered),
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4:])
