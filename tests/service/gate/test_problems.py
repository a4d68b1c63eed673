from typing import Any

import pytest

from service.errors import AstrolabeError, InternalError
from service.gate.problems import Problem, as_error, problem_body, problem_kinds
from tests.support.fakes import JSON, Running, running

ROUTES = (
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/v1/info",
    "/v1/recommend",
    "/docs",
    "/openapi.json",
)


def assert_problem(answer: Any, status: int) -> dict[str, Any]:
    """Every error answer looks like this, whatever its route and its cause."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate(answer.json())
    assert problem.status == status
    assert problem.type == f"/problems/{problem.code}"
    assert problem.title
    assert problem.detail
    assert problem.request_id == answer.headers["x-request-id"]
    return answer.json()  # type: ignore[no-any-return]


@pytest.mark.anyio
@pytest.mark.parametrize("path", ROUTES)
async def test_error_envelope_on_every_route(path: str) -> None:
    async with running() as service:
        wrong_method = await service.client.request("DELETE", path)
        assert "DELETE" in assert_problem(wrong_method, 405)["detail"]
        assert wrong_method.headers["allow"]
        bad_deadline = await service.client.get(path, headers={"x-request-timeout-ms": "soon"})
        assert_problem(bad_deadline, 422)
        too_large = await service.client.get(path, headers={"content-length": "99999999"})
        assert_problem(too_large, 413)
        missing = await service.client.get(f"{path.rstrip('/')}/nothing-here")
        assert_problem(missing, 404)


@pytest.mark.anyio
async def test_every_kind_of_problem_is_explained_at_its_type() -> None:
    async with running() as service:
        for code, kind in problem_kinds().items():
            answer = await service.client.get(kind.type)
            assert answer.status_code == 200
            assert answer.json() == kind.model_dump()
            assert answer.json()["code"] == code
            assert answer.json()["explanation"]
        assert_problem(await service.client.get("/problems/none-such"), 404)


@pytest.mark.anyio
async def test_allow_lists_the_methods_of_all_routes_at_a_path() -> None:
    async with running() as service:
        answer = await service.client.put("/v1/recommend", headers=JSON)
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.anyio
async def test_every_problem_says_the_request_id_of_its_answer() -> None:
    async def ask(service: Running) -> Any:
        return await service.recommend(b"{", x_request_id="mine")

    async with running() as service:
        assert_problem(await ask(service), 400)


def test_foreign_exceptions_become_internal_errors_without_details() -> None:
    error = as_error(ValueError("/home/someone/secret"))
    assert type(error) is InternalError
    assert "secret" not in error.detail


def test_own_exceptions_stay_as_they_are() -> None:
    error = AstrolabeError("mine")
    assert as_error(error) is error


def test_body_survives_text_that_is_not_unicode() -> None:
    assert b"request_id" in problem_body(InternalError("lone \ud800"), "r")
