"""Keys, scopes, tenants and rates on a real gateway: rows 1, 2 and 4 of the bad days, and the headers of every answer."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from deploy.local.valkey import Valkey
from shared import access
from shared.access import AccessError, Tenant
from shared.live_file import FOLLOWED_S
from tests.conftest import PHOTOS, Background
from tests.gateway.conftest import gateway_process

PHOTO = (PHOTOS / "chelsea.png").read_bytes()
KEYS = {
    ("acme", "submit", "read"): access.new_key(),
    ("beta", "submit", "read"): access.new_key(),
    ("acme", "read"): access.new_key(),
    ("acme", "submit"): access.new_key(),
    ("ops", "admin"): access.new_key(),
    ("slow", "submit", "read"): access.new_key(),
    ("small", "submit", "read"): access.new_key(),
    ("artist", "submit", "read"): access.new_key(),
}
ACME, BETA, OPS = KEYS["acme", "submit", "read"], KEYS["beta", "submit", "read"], KEYS["ops", "admin"]
LIMITS = """
[tenants.slow]
rate_per_s = 0.5
burst = 2
[tenants.artist]
rate_per_s = 0.5
burst = 2
[tenants.small]
byte_share = 0.0001
"""


def text(keys: dict[tuple[str, ...], str]) -> str:
    """A file of these keys."""
    lines = [f'"{access.digest(key)}" = {{ tenant = "{who[0]}", scopes = {list(who[1:])} }}' for who, key in keys.items()]
    return "[keys]\n" + "\n".join(lines) + LIMITS


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def url(background: Background, valkey: Valkey, file: Path) -> Iterator[str]:
    file.write_text(text(KEYS))
    with gateway_process(background, file.parent, valkey.url, {"MESH_API_KEYS": str(file)}) as url:
        yield url


def client(url: str, key: str = "") -> httpx.Client:
    return httpx.Client(base_url=url, timeout=20, headers={"authorization": f"Bearer {key}"} if key else {})


def submit(http: httpx.Client, **headers: str) -> httpx.Response:
    return http.post("/v1/jobs", content=PHOTO, headers={"content-type": "image/png", **headers})


def test_keys_come_and_go_while_the_gateway_runs_and_a_bad_file_changes_nothing(url: str, file: Path) -> None:
    fresh = access.new_key()
    with client(url, fresh) as http, client(url, OPS) as ops:
        assert http.get("/v1/models").status_code == 401
        try:
            file.write_text(text(KEYS | {("new", "read"): fresh}))
            time.sleep(FOLLOWED_S)
            assert http.get("/v1/models").status_code == 200
            file.write_text(text(KEYS) + "\n[keys]\nthis is no TOML")
            time.sleep(FOLLOWED_S)
            assert http.get("/v1/models").status_code == 200
            told = ops.get("/health").json()
            assert told["status"] == "degraded"
            assert "keys.toml" in told["keys_problem"]
        finally:
            file.write_text(text(KEYS))
        time.sleep(FOLLOWED_S)
        assert http.get("/v1/models").status_code == 401
        assert ops.get("/health").json()["keys_problem"] is None


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer vm_no", f"Basic {ACME}", ACME, f"Bearer {ACME[:-1]}"])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/jobs"), ("GET", "/v1/models"), ("GET", "/health"), ("POST", "/predict/small")]
)
def test_no_key_or_a_bad_one_is_401(url: str, authorization: str, method: str, path: str) -> None:
    with client(url) as http:
        body = PHOTO if method == "POST" else None
        answer = http.request(method, path, content=body, headers={"authorization": authorization, "content-type": "image/png"})
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthorized"
    assert answer.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/v2/health/live"])
def test_probes_need_no_key(url: str, path: str) -> None:
    with client(url) as http:
        assert http.get(path).status_code != 401


def test_a_scope_allows_what_it_says(url: str) -> None:
    with client(url, KEYS["acme", "read"]) as http:
        assert submit(http).json()["code"] == "forbidden"
        assert http.get("/v1/models").status_code == 200
        assert http.get("/health").status_code == 403
    with client(url, KEYS["acme", "submit"]) as http:
        answer = submit(http)
        assert answer.status_code == 202
        assert http.get(answer.headers["location"]).status_code == 403
        assert http.delete(answer.headers["location"]).status_code == 200
    with client(url, OPS) as http:
        assert http.get("/health").status_code == 200
        assert submit(http).status_code == 202


def test_another_tenants_job_does_not_exist(url: str) -> None:
    with client(url, ACME) as acme, client(url, BETA) as beta, client(url, OPS) as ops:
        job = submit(acme).json()
        path = f"/v1/jobs/{job['id']}"
        for stranger in (beta, ops):
            for answer in (
                stranger.get(path),
                stranger.get(f"{path}/events"),
                stranger.get(f"{path}/image"),
                stranger.delete(path),
                stranger.post(f"{path}/cancel"),
            ):
                assert (answer.status_code, answer.json()["code"]) == (404, "unknown-job")
        guessed = job["id"][:-1] + ("a" if job["id"][-1] != "a" else "e")
        assert acme.get(f"/v1/jobs/{guessed}").json()["code"] == "unknown-job"
        assert acme.get(path).json()["status"] == "queued"
        assert acme.delete(path).json()["status"] == "canceled"


def test_another_tenants_batch_does_not_exist(url: str) -> None:
    with client(url, ACME) as acme, client(url, BETA) as beta:
        answer = acme.post("/v1/batches", files=[("images", PHOTO), ("images", PHOTO)])
        assert answer.status_code == 202, answer.text
        batch = answer.json()
        path = f"/v1/batches/{batch['id']}"
        assert acme.get(path).status_code == 200
        for answer in (beta.get(path), beta.get(f"{path}/deliveries"), beta.delete(path)):
            assert answer.status_code == 404


def test_an_idempotency_key_is_its_tenants(url: str) -> None:
    with client(url, ACME) as acme, client(url, BETA) as beta:
        first, again = (submit(acme, **{"idempotency-key": "one"}).json()["id"] for _ in range(2))
        other = submit(beta, **{"idempotency-key": "one"}).json()["id"]
    assert first == again
    assert other != first


def test_tenants_are_not_mixed_up_under_concurrency(url: str) -> None:
    def check(number: int) -> None:
        with client(url, (ACME, BETA)[number % 2]) as own, client(url, (BETA, ACME)[number % 2]) as other:
            path = submit(own).headers["location"]
            assert own.get(path).status_code == 200
            assert other.get(path).status_code == 404
            assert own.delete(path).status_code == 200

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(check, range(32)))


def test_over_its_rate_a_tenant_is_told_when_to_come_back(url: str) -> None:
    with client(url, KEYS["slow", "submit", "read"]) as slow, client(url, ACME) as acme:
        answers = [submit(slow) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [202, 202, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 2
        assert slow.get(answers[0].headers["location"]).status_code == 200, "reading is not counted"
        assert submit(acme).status_code == 202


def test_pictures_to_be_drawn_count_against_the_rate(url: str) -> None:
    with client(url, KEYS["artist", "submit", "read"]) as artist:
        location = submit(artist).headers["location"]
        answers = [artist.get(f"{location}/image") for _ in range(2)]
        assert [answer.json()["code"] for answer in answers] == ["no-result", "too-many-requests"]
        assert answers[1].status_code == 429
        assert 1 <= int(answers[1].headers["retry-after"]) <= 2
        assert artist.get(location).status_code == 200, "reading is not counted"


def test_over_its_byte_share_a_tenant_is_refused_alone(url: str) -> None:
    with client(url, KEYS["small", "submit", "read"]) as small, client(url, ACME) as acme:
        answer = submit(small)
        assert (answer.status_code, answer.json()["code"]) == (429, "too-many-requests")
        assert int(answer.headers["retry-after"]) >= 1
        assert submit(acme).status_code == 202


def test_every_answer_tells_browsers_to_be_careful(url: str) -> None:
    with client(url) as http:
        for answer in (http.get("/livez"), http.get("/v1/models"), http.get("/nowhere"), submit(http)):
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["x-frame-options"] == "DENY"
            assert answer.headers["cache-control"] == "no-store"
            assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "keys"),
        ("[keys]", "no key"),
        ('[keys]\n"secret" = { tenant = "a", scopes = ["read"] }', "sha256"),
        (f'[keys]\n"{access.digest("x")}" = {{ tenant = "A b", scopes = ["read"] }}', "tenant"),
        (f'[keys]\n"{access.digest("x")}" = {{ tenant = "a", scopes = ["write"] }}', "write"),
        ("[keys", "keys.toml"),
    ],
)
def test_a_wrong_file_of_keys_is_told_in_one_line(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(text)
    with pytest.raises(AccessError, match=r"keys\.toml") as error:
        access.load(str(file))
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_of_keys_is_no_open_door(tmp_path: Path) -> None:
    with pytest.raises(AccessError, match="MESH_API_KEYS"):
        access.load(str(tmp_path / "none.toml"))
    assert access.load("") is None


def test_tenants_have_their_limits(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(f'[keys]\n"{access.digest("k")}" = {{ tenant = "slow", scopes = ["read"] }}' + LIMITS)
    found = access.load(str(file))
    assert found is not None
    assert found.find("k") == access.Key("slow", ["read"])
    assert found.find("x") is None
    assert found.tenant("slow") == Tenant(name="slow", rate_per_s=0.5, burst=2)
    assert found.tenant("other") == Tenant(name="other")
