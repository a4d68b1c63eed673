"""What Schemathesis loads besides its command line: it spares it patterns that take seconds.

Schemathesis writes the limits of a text's length into its pattern, as in `[a-z]{1,65536}`, and
compiles that some seventy times at over a second each. It leaves alternatives alone, and `p|p`
means what `p` means. It then also tries texts of which only a part matches.
"""

from typing import Any

import schemathesis


@schemathesis.hook
def before_load_schema(context: schemathesis.HookContext, raw_schema: dict[str, Any]) -> None:
    _spare_quantifiers(raw_schema)


def _spare_quantifiers(node: Any) -> None:
    if isinstance(node, dict):
        if isinstance(pattern := node.get("pattern"), str) and "maxLength" in node:
            node["pattern"] = f"{pattern}|{pattern}"
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            _spare_quantifiers(child)
