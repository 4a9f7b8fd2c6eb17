"""The short form of `make fuzz`: some hundred mutants through the decoders, a few through the mesh with good neighbours."""

import asyncio

from deploy.local.supervisor import LocalMesh
from tests.fuzz import corpus, suites
from tests.fuzz.run import LABEL, through_the_mesh, through_the_pool


def test_every_mutant_ends_in_a_typed_outcome() -> None:
    report = asyncio.run(through_the_pool(corpus.mutants(corpus.made(), 600, seed=7)))
    assert report.pictures == 600
    assert report.untyped == []
    assert report.slowest_s < 6, report.slowest
    assert report.outcomes["decoded"] > 20
    assert report.outcomes["corrupt-image"] > 100


def test_the_pictures_of_pngsuite_decode_to_their_size() -> None:
    pictures = suites.pngsuite()
    report = asyncio.run(through_the_pool(pictures.items(), decoders=1, sizes=dict.fromkeys(pictures, (32, 32))))
    assert report.pictures == 15
    assert report.untyped == report.wrong == []


def test_broken_pictures_of_pngsuite_are_refused() -> None:
    report = asyncio.run(through_the_pool(suites.broken_pngsuite().items(), decoders=1))
    assert (report.untyped, report.killers) == ([], [])
    assert report.outcomes == {"corrupt-image": 8, "unsupported-format": 6}


def test_bad_pictures_hurt_no_neighbour(mesh: LocalMesh) -> None:
    bad = list(corpus.mutants(corpus.made(), 32, seed=8))
    report = asyncio.run(through_the_mesh(mesh.url, bad))
    assert report.untyped == []
    assert report.neighbours == {LABEL: 32}
    assert sum(report.outcomes.values()) == 32
