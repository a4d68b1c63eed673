"""Links: where OpenAPI says that one answer holds what another request needs.

A client generator or a fuzzer follows them: what is added is then looked up, changed and removed.
"""

from typing import Any


def link(
    verb: str, path: str, parameters: dict[str, str], body: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A link to the operation at a path of the document, such as `/v1/labels/{label_id}`.

    Values are runtime expressions such as `$response.body#/name`, or stand for themselves.
    """
    pointer = path.replace("~", "~0").replace("/", "~1")
    found: dict[str, Any] = {"operationRef": f"#/paths/{pointer}/{verb}", "parameters": parameters}
    if body is not None:
        found["requestBody"] = body
    return found


def links(**named: dict[str, Any]) -> dict[int | str, dict[str, Any]]:
    """The entry for 200 in a route's `responses` with these links."""
    return {200: {"links": named}}
