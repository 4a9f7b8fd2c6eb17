"""What a picture costs ONNX Runtime on this CPU, by batch and threads: `python -m benchmarks.batch_cost [model.onnx]`.

Why deploy/triton/model.py runs a batch one picture to a core. The graph, the built-in detector if none is given, takes pictures
as uint8 [batch, height, width, 3]. All rows take turns, several rounds of each; a figure is the median of the rounds.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime as ort

from deploy.export import repository

BATCHES = (1, 2, 4, 8)
PICTURES = 32
"""Pictures of one turn of one row."""


class Row(NamedTuple):
    """A way to run a batch of `batch` pictures."""

    way: str
    batch: int
    run: Callable[[], object]


def _session(path: Path, threads: int) -> ort.InferenceSession:
    # Set up as in deploy/triton/model.py, which only Triton can import.
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _rows(path: Path, cores: int, pool: ThreadPoolExecutor) -> list[Row]:
    together, alone = _session(path, cores), _session(path, 1)
    taken = together.get_inputs()[0]
    random = np.random.default_rng(7)
    images = random.integers(0, 255, (max(BATCHES), *taken.shape[1:]), np.uint8)

    def run(session: ort.InferenceSession, first: int, end: int) -> object:
        return session.run(None, {taken.name: images[first:end]})

    def single(at: int) -> object:
        return run(alone, at, at + 1)

    rows: list[Row] = []
    for batch in BATCHES:
        rows.append(Row("together, 1 thread", batch, lambda batch=batch: run(alone, 0, batch)))
        rows.append(Row(f"together, {cores} threads", batch, lambda batch=batch: run(together, 0, batch)))
        if batch >= cores:
            rows.append(Row(f"each alone, {cores} at once", batch, lambda batch=batch: list(pool.map(single, range(batch)))))
    return rows


def _measured(row: Row) -> tuple[float, float]:
    """Milliseconds of the clock and of the processor for a picture."""
    turns = PICTURES // row.batch
    began_s, spent_s = time.perf_counter(), time.process_time()
    for _ in range(turns):
        row.run()
    pictures = turns * row.batch
    return (time.perf_counter() - began_s) * 1000 / pictures, (time.process_time() - spent_s) * 1000 / pictures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="an ONNX graph (default: the built-in detector's)")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(cores) as pool:
        path = arguments.model
        if path is None:
            repository.write_default(Path(folder))
            path = Path(folder) / "small" / "1" / "model.onnx"
        rows = _rows(path, cores, pool)
        figures = [[_measured(row) for row in rows] for _ in range(arguments.rounds + 1)][1:]  # the first warms up
    say = functools.partial(print, flush=True)  # what a person started this for
    say("| way | batch | ms a picture | CPU ms a picture |\n|---|---|---|---|")
    for row, turns in sorted(zip(rows, zip(*figures, strict=True), strict=True), key=lambda each: each[0].way):
        wall_ms, cpu_ms = (statistics.median(turn[part] for turn in turns) for part in (0, 1))
        say(f"| {row.way} | {row.batch} | {wall_ms:.2f} | {cpu_ms:.2f} |")


if __name__ == "__main__":
    main()
