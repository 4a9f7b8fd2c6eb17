"""The client against the whole mesh, blocking and asynchronous, with pictures in every form."""

import asyncio
import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.local.supervisor import LocalMesh
from shared.errors import CorruptImage, InvalidParameter, TooLarge, UnknownJob, UnknownModel, UnsupportedMedia
from tests.conftest import PHOTOS
from visionmesh import AsyncClient, Client, Progress
from visionmesh.errors import Canceled, UnreadablePicture

CAT = PHOTOS / "chelsea.png"


def labels(result) -> list[str]:
    return [found.label for found in result]


FORMS = {
    "path": lambda: CAT,
    "text": lambda: str(CAT),
    "bytes": CAT.read_bytes,
    "bytearray": lambda: bytearray(CAT.read_bytes()),
    "memoryview": lambda: memoryview(CAT.read_bytes()),
    "file": lambda: io.BytesIO(CAT.read_bytes()),
    "array": lambda: np.asarray(Image.open(CAT).convert("RGB")),
    "view of an array": lambda: np.asarray(Image.open(CAT).convert("RGB"))[:, ::1][::-1][::-1],
    "image": lambda: Image.open(CAT),
    "CMYK image": lambda: Image.open(CAT).convert("RGB").convert("CMYK"),
}


@pytest.mark.parametrize("form", FORMS)
def test_takes_a_picture_in_this_form(mesh: LocalMesh, form: str) -> None:
    with Client(mesh.url) as client:
        result = client.detect(FORMS[form]())
    assert labels(result) == ["cat"]
    assert (result.image.width, result.image.height) == (451, 300)
    assert result.source == (CAT if form in ("path", "text") else None)


def test_a_turned_image_of_pillow_is_sent_upright(mesh: LocalMesh) -> None:
    turned = Image.open(CAT).convert("RGB").transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    with Client(mesh.url) as client:
        result = client.detect(turned)
    assert (result.image.width, result.image.height) == (451, 300)
    assert labels(result) == ["cat"]


@pytest.mark.parametrize(
    "form",
    [
        Path("nowhere.jpg"),
        "https://example.com/photo.jpg",
        io.StringIO("text"),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        7,
    ],
)
def test_says_what_is_wrong_with_a_picture_that_is_none(form: object) -> None:
    with Client("http://127.0.0.1:1") as client, pytest.raises(UnreadablePicture) as raised:
        client.detect(form)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_options_reach_the_model(mesh: LocalMesh) -> None:
    coffee = PHOTOS / "coffee.png"
    with Client(mesh.url) as client:
        assert labels(client.detect(coffee)) == ["cup", "dining table"]
        assert labels(client.detect(coffee, confidence=0.9)) == ["cup"]
        assert labels(client.detect(coffee, classes=["dining table"])) == ["dining table"]
        assert labels(client.detect(coffee, classes=[41])) == ["cup"]
        assert labels(client.detect(coffee, classes="cup,dining table")) == ["cup", "dining table"]
        assert labels(client.detect(coffee, max_detections=1)) == ["cup"]
        other = client.detect(coffee, model="small_end2end", iou=0.3)
    assert (other.model, other.track) == ("small_end2end", "C")


def test_errors_are_those_of_the_mesh(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client:
        with pytest.raises(UnknownModel, match="small_end2end"):
            client.detect(CAT, model="huge")
        with pytest.raises(InvalidParameter, match="confidence"):
            client.detect(CAT, confidence=2)
        with pytest.raises(UnsupportedMedia):
            client.detect(b"not a picture at all, but long enough")
        with pytest.raises(TooLarge):
            client.detect(CAT.read_bytes() + bytes(5_000_000))
        with pytest.raises(UnknownJob):
            client.job("guess")
        with pytest.raises(CorruptImage) as raised:
            client.detect(CAT.read_bytes()[:3000])
        assert raised.value.job_id
        assert client.job(raised.value.job_id).latest.error.code == "corrupt-image"


def test_a_job_by_its_handle(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client:
        job = client.submit(CAT, model="small")
        assert job.wait().status == job.status() == "succeeded"
        assert labels(job.result()) == ["cat"]
        assert job.cancel().status == "succeeded"
        assert job.latest.source == CAT
        again = client.job(job.id)
        assert again.latest.detections == job.latest.detections
        assert again.latest.source is None


def test_a_canceled_job_has_no_result(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client:
        jobs = [client.submit(CAT) for _ in range(12)]
        ended = [job.cancel() for job in reversed(jobs)]
        canceled = [job for job in jobs if job.status() == "canceled"]
        assert canceled
        assert {result.status for result in ended} <= {"canceled", "succeeded"}
        with pytest.raises(Canceled):
            canceled[-1].result()


def test_the_same_key_gives_the_same_job(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client:
        one, two = (client.submit(CAT, idempotency_key="mine") for _ in range(2))
        three, four = (client.submit(CAT) for _ in range(2))
    assert one.id == two.id
    assert three.id != four.id


def test_events_end_with_the_jobs_end(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client:
        steps = [step.status for step in client.submit(CAT).events()]
        ended = client.submit(CAT)
        ended.wait()
        assert [step.status for step in ended.events()][-1:] == ["succeeded"]
    assert steps[-1] == "succeeded"
    assert steps.count("succeeded") == 1


def many(count: int) -> list[Path | bytes]:
    photos = [CAT, PHOTOS / "coffee.png", PHOTOS / "astronaut.png"]
    return [photos[number % 3] for number in range(count)]


EXPECTED = [["cat"], ["cup", "dining table"], ["person"]]


def test_many_keep_their_order_and_their_failures(mesh: LocalMesh) -> None:
    sent = [*many(9), b"not a picture at all, but long enough", Path("nowhere.jpg"), CAT.read_bytes()[:3000], CAT]
    seen: list[Progress] = []
    with Client(mesh.url) as client:
        found = list(client.detect_many(sent, concurrency=4, progress=seen.append))
    assert [labels(result) for result in found[:9]] == EXPECTED * 3
    codes = [result.error and result.error.code for result in found[9:]]
    assert codes == ["unsupported-media", "unreadable-picture", "corrupt-image", None]
    assert [result.ok for result in found[9:]] == [False, False, False, True]
    assert seen[-1] == Progress(done=13, failed=3, total=13)
    with pytest.raises(UnreadablePicture):
        found[10].raise_for_error()


def test_many_begin_only_so_many(mesh: LocalMesh) -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield CAT

    with Client(mesh.url) as client:
        results = client.detect_many(endless(), concurrency=2)
        assert labels(next(results)) == ["cat"]
        results.close()
    assert taken <= 6


def test_many_stop_at_what_befalls_all(mesh: LocalMesh) -> None:
    with Client(mesh.url) as client, pytest.raises(UnknownModel):
        list(client.detect_many(many(50), model="huge"))


def test_the_asynchronous_client_does_the_same(mesh: LocalMesh) -> None:
    async def main() -> None:
        async with AsyncClient(mesh.url) as client:
            assert labels(await client.detect(CAT)) == ["cat"]
            job = await client.submit(CAT)
            assert [step.status async for step in job.events()][-1] == "succeeded"
            assert (await job.wait()).ok
            assert (await job.cancel()).ok
            assert await (await client.job(job.id)).status() == "succeeded"
            seen: list[Progress] = []
            found = [result async for result in client.detect_many(many(7), concurrency=3, progress=seen.append)]
            assert [labels(result) for result in found] == (EXPECTED * 3)[:7]
            assert seen[-1] == Progress(done=7, failed=0, total=7)
            with pytest.raises(UnknownModel):
                await client.detect(CAT, model="huge")
            with pytest.raises(UnknownModel):
                _ = [result async for result in client.detect_many(many(9), model="huge")]
            assert (await client.health())["status"] == "ok"
            assert "cat" in (await client.model("small"))["labels"]

    asyncio.run(main())


def test_asynchronous_many_that_are_left_are_canceled(mesh: LocalMesh) -> None:
    async def main() -> None:
        async with AsyncClient(mesh.url) as client:
            results = client.detect_many(many(40), concurrency=2)
            assert labels(await anext(results)) == ["cat"]
            await results.aclose()
            assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


def test_importing_it_needs_little() -> None:
    script = (
        "import sys; from visionmesh import Client, AsyncClient, Result; Client('http://localhost').close(); "
        "print([name for name in ('PIL', 'numpy', 'redis', 'typer', 'starlette', 'structlog') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
