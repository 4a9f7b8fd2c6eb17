"""The promise, by property: no order of accept, claim, decoded, finish, fail, release, cancel and expiry breaks it.

A state machine drives the scripts on a real Valkey as workers would, among them workers that lost their lease (a claim of an
entry that somebody holds) and that say everything twice. After each step the books are audited.
"""

import asyncio
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
import redis as sync_redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shared.access import NOBODY, Tenant
from shared.errors import (
    CorruptImage,
    IdempotencyMismatch,
    InferenceFailed,
    InvalidParameter,
    Overloaded,
    TooManyRequests,
    UploadLost,
)
from shared.messages import ImageInfo, JobOptions, Outcome, Placement
from shared.models import load
from shared.settings import Settings, read
from shared.store import Store
from shared.store.jobs import RESULT_RESERVE_BYTES

REGISTRY = load()
MODEL = REGISTRY.get("small")
BODY = b"picture"
TERMINAL = {"succeeded", "failed", "canceled", "expired"}
TAG = "{mesh:0}"
TENANTS = [NOBODY, Tenant(name="acme", byte_share=0.3), Tenant(name="beta")]
CHUNK = b"chunk of a picture"
JOBS_AT_ONCE = 12
DEAD_LETTERS = 3
EACH = len(BODY) + MODEL.tensor_bytes + RESULT_RESERVE_BYTES
BUDGET = JOBS_AT_ONCE * EACH
QUEUES = {"preprocess": f"{TAG}:queue:preprocess", "inference": f"{TAG}:queue:inference:small"}


class Mesh(RuleBasedStateMachine):
    """What clients and workers can do, in any order."""

    url: str
    tickets = Bundle("tickets")
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.redis = sync_redis.Redis.from_url(self.url, decode_responses=True)
        self.raw = sync_redis.Redis.from_url(self.url)
        self.redis.flushall()
        self.store = Store(self.settings())
        self.run(self.store._ids.load(self.store._connection))
        self.run(self.store.clock.refresh(self.store._connection))
        self.ended: dict[str, str] = {}
        self.accepted: list[str] = []
        self.staged: dict[str, tuple[Tenant, int]] = {}
        self.dead: set[str] = set()

    def settings(self) -> Settings:
        return read({"MESH_REDIS_URL": self.url, "MESH_RESULT_TTL_S": "600", "MESH_JOB_DEADLINE_S": "300",
                     "MESH_BYTE_BUDGET": str(BUDGET), "MESH_DEAD_LETTERS": str(DEAD_LETTERS)})  # fmt: skip

    def run(self, coroutine: Any) -> Any:
        return self.loop.run_until_complete(coroutine)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.loop.close()
        self.redis.close()
        self.raw.close()

    # --- clients -------------------------------------------------------------------------------------------------

    @rule(target=jobs, key=st.sampled_from([None, "a", "b"]), changed=st.booleans(), tenant=st.sampled_from(TENANTS))
    def accept(self, key: str | None, changed: bool, tenant: Tenant) -> Any:
        key = key and key + tenant.name
        job_id = self.store.jobs.new_id(key, tenant)
        options = JobOptions(confidence=0.5 if changed else None)
        try:
            job = self.run(
                self.store.jobs.accept(
                    job_id,
                    model=MODEL,
                    options=options,
                    body=BODY,
                    upload_bytes=len(BODY),
                    idempotency_key=key,
                    request_hash=str(changed),
                    tenant=tenant,
                )
            )
        except TooManyRequests:
            assert self.reserved_of(tenant) + EACH > int(BUDGET * tenant.byte_share)
            return multiple()
        except Overloaded:
            assert self.reserved_of(NOBODY) + EACH > BUDGET
            return multiple()
        except IdempotencyMismatch:
            assert self.redis.get(f"{TAG}:key:{key}").split()[1] != str(changed)
            return multiple()
        if job.id == job_id:
            self.accepted.append(job_id)
        else:
            assert job.id in self.accepted
        return job.id

    @rule(tenant=st.sampled_from(TENANTS))
    def stage(self, tenant: Tenant) -> None:
        """A large upload comes in pieces."""
        job_id = next((name for name, (owner, _) in self.staged.items() if owner == tenant), None)
        job_id = job_id or self.store.jobs.new_id(None, tenant)
        try:
            self.run(self.store.uploads.append(job_id, CHUNK, tenant))
        except (Overloaded, TooManyRequests):
            return
        self.staged[job_id] = (tenant, self.staged.get(job_id, (tenant, 0))[1] + len(CHUNK))

    @precondition(lambda self: self.staged)
    @rule(target=jobs)
    def accept_staged(self) -> Any:
        job_id, (tenant, size) = self.staged.popitem()
        try:
            self.run(
                self.store.jobs.accept(job_id, model=MODEL, options=JobOptions(), body=None, upload_bytes=size, tenant=tenant)
            )
        except (Overloaded, TooManyRequests):
            return multiple()
        self.accepted.append(job_id)
        return job_id

    @precondition(lambda self: self.staged)
    @rule(swept=st.booleans())
    def give_up_staged(self, swept: bool) -> None:
        """The client goes, or the gateway dies with the upload in its hands and the sweep finds it."""
        job_id, _ = self.staged.popitem()
        if swept:
            self.redis.zadd(f"{TAG}:live", {job_id: 1})
            self.run(self.store.endings.sweep(0))
        else:
            self.run(self.store.uploads.discard(job_id))

    @rule(job_id=jobs)
    def replay(self, job_id: str) -> None:
        """Of a dead letter as well as of any other job."""
        kept = self.redis.exists(f"{TAG}:upload:{job_id}") and job_id in self.ended
        try:
            job = self.run(self.store.dead_letters.replay(job_id, REGISTRY))
        except InvalidParameter:
            assert job_id not in self.ended
            return
        except UploadLost:
            assert not self.redis.exists(f"{TAG}:upload:{job_id}")
            return
        except (Overloaded, TooManyRequests):
            return
        assert job_id in self.ended
        assert kept
        self.dead.discard(job_id)
        if job.id not in self.accepted:
            self.accepted.append(job.id)

    @rule(job_id=jobs)
    def accept_again(self, job_id: str) -> None:
        """The reply was lost and the gateway asks once more, whatever happened to the job meanwhile."""
        job = self.run(self.store.jobs.accept(job_id, model=MODEL, options=JobOptions(), body=BODY, upload_bytes=len(BODY)))
        assert job.id == job_id

    @rule(job_id=jobs)
    def cancel(self, job_id: str) -> None:
        job = self.run(self.store.endings.cancel(job_id))
        assert job.status == self.ended.get(job_id, "canceled")

    @rule(job_id=jobs)
    def read_it(self, job_id: str) -> None:
        job = self.run(self.store.jobs.read(job_id))
        assert job.id == job_id
        assert (job.status in TERMINAL) == (job_id in self.ended)

    # --- workers -------------------------------------------------------------------------------------------------

    @rule(target=tickets, stage=st.sampled_from(list(QUEUES)), pick=st.integers(0, 50))
    def claim(self, stage: str, pick: int) -> Any:
        """Any entry, held by somebody or not: a lease that ran out looks the same."""
        entries = self.redis.xrange(QUEUES[stage])
        if not entries:
            return multiple()
        entry_id, fields = entries[pick % len(entries)]
        name = "preprocess" if stage == "preprocess" else "inference:small"
        found = self.run(self.store.claims.claim(0, name, [(entry_id, fields["id"])]))
        return multiple(*((stage, ticket) for ticket in found))

    def is_current(self, ticket: Any) -> bool:
        fence, status = self.redis.hmget(f"{TAG}:job:{ticket.id}", "fence", "status")
        return status == "processing" and fence == str(ticket.fence)

    @rule(held=tickets)
    def decoded(self, held: tuple[str, Any]) -> None:
        stage, ticket = held
        if stage != "preprocess":
            return
        current = self.is_current(ticket)
        tensor_before = self.redis.hget(f"{TAG}:job:{ticket.id}", "tensor")
        kept = self.run(
            self.store.claims.decoded(
                ticket,
                image=ImageInfo(640, 480, "jpeg"),
                placement=Placement(0.5, 0.5, 0, 30),
                tensor=b"\x72" * 100,
                timings_ms={"preprocess": 2.0},
            )
        )
        assert kept == current
        if tensor_before:  # somebody is about to read it
            assert self.redis.exists(tensor_before)

    @rule(held=tickets)
    def finish(self, held: tuple[str, Any]) -> None:
        stage, ticket = held
        if stage != "inference":
            return
        current = self.is_current(ticket)
        (kept,) = self.run(
            self.store.endings.finish([(ticket, Outcome(detections=[], batch_size=1, timings_ms={"inference": 3.0}))])
        )
        assert kept == current

    @rule(held=tickets, error=st.sampled_from([InferenceFailed("no"), CorruptImage("no")]))
    def fail(self, held: tuple[str, Any], error: Any) -> None:
        current = self.is_current(held[1])
        assert self.run(self.store.endings.fail(held[1], error)) == current
        if current and error.is_ours:
            self.dead.add(held[1].id)

    @rule(held=tickets)
    def release(self, held: tuple[str, Any]) -> None:
        stage, ticket = held
        current = self.is_current(ticket)
        handed_on = self.redis.hget(f"{TAG}:job:{ticket.id}", "queue") != QUEUES[stage]
        if current and handed_on:
            return  # a worker gives back only what it did not hand on
        assert self.run(self.store.claims.release(ticket)) == current

    @rule(job_id=jobs)
    def expire(self, job_id: str) -> None:
        """The job's deadline passes; the next sweep sees it."""
        if self.redis.zscore(f"{TAG}:live", job_id) is not None:
            self.redis.zadd(f"{TAG}:live", {job_id: 1})
            if job_id not in self.ended:
                self.dead.add(job_id)
        self.run(self.store.endings.sweep(0))

    # --- the audit -----------------------------------------------------------------------------------------------

    @invariant()
    def the_promise_holds(self) -> None:
        letters = set(self.redis.zrange(f"{TAG}:dead", 0, -1))
        assert letters <= self.dead
        assert len(letters) <= DEAD_LETTERS
        bytes_of: dict[str, int] = {}
        results = [fields[b"id"].decode() for _, fields in self.raw.xrange("mesh:stream:results")]
        assert len(results) == len(set(results)), "a job ended twice"
        open_jobs = []
        rung = {entry: fields["id"] for queue in QUEUES.values() for entry, fields in self.redis.xrange(queue)}
        there = set(self.redis.keys())
        with self.raw.pipeline(transaction=False) as asked:
            for job_id in self.accepted:
                asked.hgetall(f"{TAG}:job:{job_id}").pttl(f"{TAG}:job:{job_id}")
            answers = asked.execute()
        owners: dict[str, str] = {}
        for job_id, fields, ttl_ms in zip(self.accepted, answers[::2], answers[1::2], strict=True):
            status = fields[b"status"].decode()
            assert ttl_ms > 0
            if status in TERMINAL:
                assert self.ended.setdefault(job_id, status) == status, "an end was changed"
                assert job_id in results
                assert msgspec.msgpack.decode(fields[b"result"])["status"] == status
                assert (f"{TAG}:upload:{job_id}" in there) == (job_id in letters)
                assert not [key for key in there if key.startswith(f"{TAG}:tensor:{job_id}:")]
            else:
                assert job_id not in self.ended, "an ended job is open again"
                assert job_id not in results
                open_jobs.append(job_id)
                owners[job_id] = fields.get(b"tenant", b"").decode()
                bytes_of[job_id] = int(fields[b"upload_bytes"]) + MODEL.tensor_bytes + RESULT_RESERVE_BYTES
                if b"tensor" in fields:
                    assert fields[b"tensor"].decode() in there
                assert f"{TAG}:upload:{job_id}" in there
                entry = fields[b"entry"].decode()
                assert rung.get(entry) == job_id, "no queue knows of an open job: it is lost"
        assert sorted(self.redis.zrange(f"{TAG}:live", 0, -1)) == sorted([*open_jobs, *self.staged])
        for job_id in self.staged:
            assert self.redis.strlen(f"{TAG}:upload:{job_id}") == self.staged[job_id][1]
        books = {job_id: (bytes_of[job_id], owner) for job_id, owner in owners.items()}
        books |= {job_id: (size, tenant.name) for job_id, (tenant, size) in self.staged.items()}
        expected = {job_id: f"{size} {owner}".strip() for job_id, (size, owner) in books.items()}
        for owner in {owner for _, owner in books.values()} - {""}:
            expected[f"@{owner}"] = str(sum(size for size, one in books.values() if one == owner))
        if books:
            expected[""] = str(sum(size for size, _ in books.values()))
        assert self.redis.hgetall(f"{TAG}:reserved") == expected

    def reserved_of(self, tenant: Tenant) -> int:
        return int(self.redis.hget(f"{TAG}:reserved", f"@{tenant.name}" if tenant.name else "") or 0)


@pytest.mark.filterwarnings("ignore::hypothesis.errors.NonInteractiveExampleWarning")
def test_no_order_of_events_breaks_the_promise(redis_url: str) -> None:
    Mesh.url = redis_url
    run_state_machine_as_test(
        Mesh,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
            phases=[Phase.generate],  # shrinking takes minutes; add Phase.shrink for a shorter story of a failure
        ),
    )
