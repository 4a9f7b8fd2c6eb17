"""The documentation's tables say what the code says."""

import re
from pathlib import Path

import msgspec
import pytest

from shared.models import Model
from shared.settings import Settings

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "configuration.md").read_text("utf-8")


@pytest.mark.parametrize("field", msgspec.structs.fields(Settings), ids=lambda field: field.name)
def test_every_setting_has_its_row_with_its_default(field: msgspec.structs.FieldInfo) -> None:
    rows = re.findall(rf"^\| `MESH_{field.name.upper()}` \| (.*?) \| (.+) \|$", TABLE, re.MULTILINE)
    assert rows, "no row"
    default, said = rows[-1]  # that of the files that are followed comes first
    assert default.strip("` ") == str(field.default)
    assert len(said) > 10


def test_no_row_is_of_a_setting_that_is_gone() -> None:
    known = {f"MESH_{field.name.upper()}" for field in msgspec.structs.fields(Settings)}
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        named = set(re.findall(r"\bMESH_[A-Z_]+[A-Z]\b", document.read_text("utf-8")))
        assert named <= known, f"{document.name}: {named - known}"


def test_every_field_of_a_model_has_its_row() -> None:
    registry = TABLE.split("## The registry")[1]
    for field in msgspec.structs.fields(Model):
        assert field.name == "name" or f"`{field.name}`" in registry, field.name


def test_links_between_documents_lead_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
