"""The generated pages of docs/reference are those that the code gives now, and they leave nothing out."""

from __future__ import annotations

import pytest

from broker import errors
from deploy.config.tree import Config
from docs.generators import exit_codes
from docs.generators.__main__ import PAGES, REFERENCE
from docs.generators.configuration import sections
from docs.generators.source import attribute_docstrings


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    current = (REFERENCE / name).read_text(encoding="utf-8") == PAGES[name]()
    assert current, f"docs/reference/{name} is not what the code says; run `python -m docs.generators` and commit it"


def test_every_key_of_the_configuration_is_a_heading() -> None:
    text = (REFERENCE / "configuration.md").read_text(encoding="utf-8")
    for section, field in Config.model_fields.items():
        for model in sections(field.annotation):
            for key in model.model_fields:
                assert f"`{section}.{key}" in text


def test_docstrings_below_fields_are_found_without_pydantic() -> None:
    told = attribute_docstrings(sections(Config.model_fields["broker"].annotation)[0])
    assert told["lease_seconds"].startswith("A service whose heartbeat is older than this is dead")


def test_every_exit_code_has_a_meaning_and_every_error_a_code() -> None:
    text = (REFERENCE / "exit-codes.md").read_text(encoding="utf-8")
    codes = {value for name, value in vars(errors).items() if name.startswith("EX_")}
    assert all(f"| {code} | `EX_" in text for code in codes)
    for name, module, code, sentence in exit_codes.raised():
        assert code.startswith("EX_") and sentence.strip("."), f"{module}.{name}"
