"""Requests made out of the OpenAPI document, good ones and broken ones: never a server error, and every answer is one
that the document names, in the form it names."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from living import NOBODY, Living
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    missing_required_header,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

load_all_checks()
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
    missing_required_header,
    unsupported_method,
]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Living]:
    """A server of its own: what is uploaded here by chance is nobody else's."""
    living = Living(tmp_path / "خانه", hub_endpoint=NOBODY)
    living.start()
    yield living
    living.close()


@pytest.mark.timeout(600)
def test_what_the_document_describes(own: Living) -> None:
    described = schemathesis.openapi.from_url(f"{own.url}/api/openapi.json")
    num_operations = num_cases = 0
    # The stream of all events never ends by itself; every other address is tried.
    for result in described.exclude(path="/api/events").get_all_operations():
        operation = result.ok()
        num_operations += 1
        for mode in GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=8,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def send(case: Any) -> None:
                nonlocal num_cases
                num_cases += 1
                case.call_and_validate(checks=CHECKS, timeout=60)

            # An operation without anything that could be wrong has no wrong requests.
            with contextlib.suppress(Unsatisfiable):
                send()
    assert num_operations >= 30
    assert num_cases > 4 * num_operations
