"""Reading a process' metrics as Prometheus does."""

import httpx
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.supervisor import LocalMesh

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(port: int) -> Samples:
    """Every sample by name and labels."""
    answer = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def scrape_all(mesh: LocalMesh) -> Samples:
    """The sum over all processes of a mesh."""
    total: Samples = {}
    for port in mesh.metrics_ports.values():
        for key, value in scrape(port).items():
            total[key] = total.get(key, 0.0) + value
    return total


def sum_of(samples: Samples, name: str, **labels: str) -> float:
    """The sum of the samples of this name that carry these labels."""
    return sum(value for (found, has), value in samples.items() if found == name and has >= set(labels.items()))
