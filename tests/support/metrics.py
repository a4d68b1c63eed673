"""Reads a page of /metrics."""


def samples(page: str) -> dict[str, float]:
    """Value of every series, named as on the page, labels included."""
    lines = (line.rpartition(" ") for line in page.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in lines if series}
