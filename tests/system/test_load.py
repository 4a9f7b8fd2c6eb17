"""Many jobs at once: batches form, all end, nothing stays behind."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import redis

from deploy.local.supervisor import LocalMesh
from tests.conftest import PHOTOS

CAT = (PHOTOS / "chelsea.png").read_bytes()
JOBS = 40


def test_batches_form_under_concurrency(http: httpx.Client) -> None:
    def detect(_: int) -> dict[str, object]:
        return http.post("/v1/jobs", content=CAT, headers={"content-type": "image/png", "prefer": "wait=30"}).json()

    with ThreadPoolExecutor(16) as threads:
        jobs = list(threads.map(detect, range(JOBS)))
    assert {job["status"] for job in jobs} == {"succeeded"}
    assert {job["detections"][0]["label"] for job in jobs} == {"cat"}
    sizes = [job["batch_size"] for job in jobs]
    assert max(sizes) > 1, sizes
    # A batch of n gives n jobs that say n.
    assert all(sizes.count(size) % size == 0 for size in set(sizes)), sizes


def test_nothing_but_results_stays_in_redis(mesh: LocalMesh, http: httpx.Client) -> None:
    ids = [http.post("/v1/jobs", content=CAT, headers={"content-type": "image/png"}).json()["id"] for _ in range(5)]
    for job_id in ids:
        assert http.get(f"/v1/jobs/{job_id}", params={"wait": 20}).json()["status"] == "succeeded"
    with contextlib.closing(redis.Redis.from_url(mesh.redis_url, decode_responses=True)) as client:
        keys = set(client.scan_iter("*", count=1000))
        # Only ours: other tests of this mesh keep uploads on purpose, of dead letters and of pictures that are to be drawn.
        ours = {key for key in keys if any(job_id in key for job_id in ids)}
        assert not {key for key in ours if ":upload:" in key or ":tensor:" in key}
        assert client.hmget("{mesh:0}:reserved", ids) == [None] * len(ids)
        assert client.zmscore("{mesh:0}:live", ids) == [None] * len(ids)
        for stage in ("preprocess", "inference:small", "inference:small_end2end"):
            queue = f"{{mesh:0}}:queue:{stage}"
            assert client.xlen(queue) == 0
            assert client.xpending(queue, "workers")["pending"] == 0
        kept_for_ever = {key for key in keys if client.ttl(key) == -1}
        queues = {key for key in keys if ":queue:" in key}
        # The books of uploads that others keep are emptied by the sweep; they hold none of ours, as seen above.
        books = {"{mesh:0}:reserved", "{mesh:0}:kept", "{mesh:0}:live", "{mesh:0}:dead", "{mesh:0}:dead:bytes"}
        assert kept_for_ever <= {"mesh:id-secret", "mesh:stream:results"} | queues | books
