"""Every key and channel of the mesh in Redis: name, type, who writes it, how long it lives.

    key                             type    written by            lives
    {mesh:P}:job:ID                 hash    accept .. end         deadline + result TTL, then result TTL from its end
    {mesh:P}:upload:ID              string  gateway               the picture or the pointer to its file; until the job ends;
                                                                  staging, job or dead-letter TTL
    {mesh:P}:tensor:ID:FENCE        string  preprocess worker     until the job ends; job TTL
    {mesh:P}:live                   zset    stage, accept, end    ID -> deadline (ms); emptied by end and sweep
    {mesh:P}:reserved               hash    stage, accept, end    ID -> bytes (and tenant), "@TENANT" and "" -> sums
    {mesh:P}:dead                   zset    end                   failed by our fault: ID -> when (ms); dead-letter TTL
    {mesh:P}:dead:bytes             string  end                   what their pictures take at most; dead-letter TTL
    {mesh:P}:key:HASH               string  accept, batch_*       idempotency key -> ID and request hash; result TTL
    {mesh:P}:batch:ID               hash    batch_*, end          as the jobs of the batch, whose IDs it holds
    {mesh:P}:outbox                 stream  end, batch_seal       what callbacks are to be told; three days from the last entry
    {mesh:P}:deliveries:ID          list    webhooks              how the callback was told so far; a day from the last try
    {mesh:P}:kept                   zset    end, sweep            uploads kept with their results: ID -> end (ms); swept
    {mesh:P}:renders                list    gateway               pictures to be drawn; five minutes from the last request
    {mesh:P}:render:ID:HOW          string  preprocess worker     a drawn picture (or who asks, `:asked`); five minutes
    {mesh:P}:queue:preprocess       stream  accept, release       entries carry only `id`; acked and deleted when done
    {mesh:P}:queue:inference:MODEL  stream  decoded, release      the same; of a later version of the model MODEL@VERSION
    mesh:stream:results             stream  end                   every finished job, capped (MESH_RESULTS_STREAM_LENGTH)
    {mesh:P}:stream:results         stream  end                   the same of one partition, in a Redis Cluster instead of it
    {mesh:P}:never                  none    nobody                named by scripts that touch more keys than they declare
    mesh:partitions                 zset    every process         "count" -> the most there have been, in a cluster; for ever
    mesh:rate:TENANT                hash    take_token            a tenant's bucket of requests; until it is full again
    mesh:workers                    hash    heartbeats            a minute from the last beat
    mesh:id-secret                  string  first process         for ever: tells an expired ID from one never given

    channel            payload
    mesh:results       every finished job
    mesh:results:M     every finished job of model M
    mesh:jobs:ID       every event of one job
    mesh:renders:ID    that a picture of a job has been drawn
    mesh:batches:ID    the ID of a batch, whenever a member of it ends
    mesh:tenant:T:…    the same three again, for the jobs of tenant T: `results`, `results:M`, `jobs:ID`
    mesh:wake:NAME     jobs whose end one gateway process waits for; internal, always MessagePack

P is the partition, a hash tag: all keys of a job lie in one slot of a Redis Cluster. A script keeps to the keys of one
partition, so a cluster has a stream of results for each (docs/decisions/0004-cluster.md).
"""

GROUP = "workers"
"""The consumer group of every queue."""

RESULTS_CHANNEL = "mesh:results"
RESULTS_STREAM = "mesh:stream:results"
WORKERS = "mesh:workers"
PARTITIONS = "mesh:partitions"
ID_SECRET = "mesh:id-secret"  # noqa: S105 - a key's name, not a secret


def _tag(partition: int) -> str:
    return f"{{mesh:{partition}}}"


def job(partition: int, job_id: str) -> str:
    """The job's hash: the truth about it."""
    return f"{_tag(partition)}:job:{job_id}"


def upload(partition: int, job_id: str) -> str:
    """The picture's bytes as they were sent, or the pointer to its file (`upload_files`)."""
    return f"{_tag(partition)}:upload:{job_id}"


def tensor(partition: int, job_id: str, fence: int) -> str:
    """The letterboxed pixels of one attempt; the fence keeps a late writer off its successor's tensor."""
    return f"{_tag(partition)}:tensor:{job_id}:{fence}"


def live(partition: int) -> str:
    """What has not ended yet, by deadline."""
    return f"{_tag(partition)}:live"


def reserved(partition: int) -> str:
    """The byte budget's books."""
    return f"{_tag(partition)}:reserved"


def dead(partition: int) -> str:
    """Jobs that failed though their pictures may be good: the dead letters."""
    return f"{_tag(partition)}:dead"


def dead_bytes(partition: int) -> str:
    """What the pictures of the dead letters take, at most."""
    return f"{_tag(partition)}:dead:bytes"


def results(partition: int, *, in_cluster: bool) -> str:
    """The stream of results that the end of a job of this partition is told in."""
    return f"{_tag(partition)}:stream:results" if in_cluster else RESULTS_STREAM


def never(partition: int, *, in_cluster: bool) -> list[str]:
    """In a cluster, a key that there never is, for scripts that touch more keys than they can declare.

    A script that declares it is not run in a slot that is being moved, where those keys may lie on the other side: Redis says
    TRYAGAIN of several keys that are not all there.
    """
    return [f"{_tag(partition)}:never"] if in_cluster else []


def rate(tenant: str) -> str:
    """A tenant's bucket of requests."""
    return f"mesh:rate:{tenant}"


def idempotency(partition: int, key_hash: str) -> str:
    """Where a client's idempotency key leads."""
    return f"{_tag(partition)}:key:{key_hash}"


def batch(partition: int, batch_id: str) -> str:
    """A batch: what it was asked for, its members in order, how many have ended and how."""
    return f"{_tag(partition)}:batch:{batch_id}"


def outbox(partition: int) -> str:
    """The stream of ends that somebody's callback is to be told."""
    return f"{_tag(partition)}:outbox"


def deliveries(partition: int, subject_id: str) -> str:
    """The log of the tries to tell the callback of a job or batch."""
    return f"{_tag(partition)}:deliveries:{subject_id}"


def kept(partition: int) -> str:
    """What keeps its upload with its result, by when both go."""
    return f"{_tag(partition)}:kept"


def renders(partition: int) -> str:
    """The requests for drawn pictures."""
    return f"{_tag(partition)}:renders"


def render(partition: int, job_id: str, how: str) -> str:
    """A drawn picture."""
    return f"{_tag(partition)}:render:{job_id}:{how}"


def queue(partition: int, stage: str) -> str:
    """The stream of a stage: `preprocess` or `inference:MODEL`."""
    return f"{_tag(partition)}:queue:{stage}"


def results_of(model: str) -> str:
    """The channel of one model's results."""
    return f"{RESULTS_CHANNEL}:{model}"


def events_of(job_id: str) -> str:
    """The channel of one job's events."""
    return f"mesh:jobs:{job_id}"


def events_of_batch(batch_id: str) -> str:
    """The channel of one batch's progress."""
    return f"mesh:batches:{batch_id}"


def events_of_render(job_id: str) -> str:
    """The channel that tells when a picture of a job has been drawn."""
    return f"mesh:renders:{job_id}"


def of_tenant(tenant: str, channel: str) -> str:
    """A tenant's own copy of a channel: one pattern, `mesh:tenant:T:*`, is all that its Redis user may hear."""
    return f"mesh:tenant:{tenant}:{channel.removeprefix('mesh:')}"


def channels_of(job_id: str, tenant: str) -> list[str]:
    """Where the events of one job are told: its own channel, and its tenant's copy of it."""
    channel = events_of(job_id)
    return [channel, of_tenant(tenant, channel)] if tenant else [channel]


def wake(name: str) -> str:
    """The channel on which one gateway process is told of the ends it waits for."""
    return f"mesh:wake:{name}"
