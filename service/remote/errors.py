"""All errors that the Python client raises on purpose, as one tree.

AstrolabeClientError
├── AstrolabeHTTPError          the service answered with an error
│   ├── RequestRefused          4xx: the caller must change something
│   │   ├── KeyRefused          401, 403: no key, or a wrong one
│   │   └── NoSuchThing         404: no such route, label or model
│   ├── Overloaded              429, 503: the service cannot answer now
│   ├── DeadlinePassed          504: the service gave up at the request's deadline
│   └── ServiceFailed           any other 5xx
├── AstrolabeConnectionError    no answer came
│   └── AstrolabeTimeout        none came before the deadline
└── AnswerNotUnderstood         the answer is not one of this API
"""

import json
from collections.abc import Mapping
from typing import Any


class AstrolabeClientError(Exception):
    """Base of the tree."""


class AstrolabeHTTPError(AstrolabeClientError):
    """The service answered with an error; the attributes are the fields of its problem document.

    `code` is stable. It is empty if the answer is not the service's own but, say, a proxy's.
    `retry_after_s` is the Retry-After header in seconds.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        request_id: str,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(
            f"{status} {code or 'error'}: {detail} (request {request_id or 'unknown'})"
        )
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class RequestRefused(AstrolabeHTTPError):
    """The request cannot be answered as it stands."""


class KeyRefused(RequestRefused):
    """The key is absent, wrong, or not enough for this route."""


class NoSuchThing(RequestRefused):
    """The route, the label or the model does not exist."""


class Overloaded(AstrolabeHTTPError):
    """The service takes no more work now; try again after `retry_after_s` seconds."""


class DeadlinePassed(AstrolabeHTTPError):
    """The service gave up because the deadline of the request had passed."""


class ServiceFailed(AstrolabeHTTPError):
    """Something broke inside the service: report the `request_id`."""


class AstrolabeConnectionError(AstrolabeClientError):
    """No answer came: the service cannot be reached, or the connection broke."""


class AstrolabeTimeout(AstrolabeConnectionError):
    """No answer came before the deadline."""


class AnswerNotUnderstood(AstrolabeClientError):
    """The answer is not JSON, or lacks a field that this API always sends."""


_BY_STATUS: dict[int, type[AstrolabeHTTPError]] = {
    401: KeyRefused,
    403: KeyRefused,
    404: NoSuchThing,
    429: Overloaded,
    503: Overloaded,
    504: DeadlinePassed,
}


def http_error(status: int, headers: Mapping[str, str], body: bytes) -> AstrolabeHTTPError:
    """The error for an answer, with the fields of its problem document if it has one."""
    problem = _problem(body)
    family = RequestRefused if status < 500 else ServiceFailed
    return _BY_STATUS.get(status, family)(
        status,
        str(problem.get("code", "")),
        str(problem.get("detail", f"the service answered with status {status}")),
        str(problem.get("request_id", headers.get("x-request-id", ""))),
        _seconds(headers.get("retry-after")),
    )


def _problem(body: bytes) -> dict[str, Any]:
    try:
        problem = json.loads(body)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _seconds(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, or None. A date gives None too; the service sends none."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else None
