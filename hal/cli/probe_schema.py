"""The published schema: kept as a file beside this module, made from the records (a test holds them together)."""

from __future__ import annotations

import os
from typing import Any

FILE = os.path.join(os.path.dirname(__file__), "probe.schema.json")


def published() -> str:
    """Return the schema as it is published."""
    with open(FILE, encoding="utf-8") as file:
        return file.read()


def made() -> str:
    """Return the schema that the records amount to now."""
    import msgspec

    from hal.cli.probe_reports import AnyReport

    parts, definitions = msgspec.json.schema_components([AnyReport], ref_template="#/$defs/{name}")
    schema: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:rackhal:hal-probe:1",
        "title": "What hal-probe says to programs",
        "description": "One JSON object a report; hal-probe watch writes one event a line. New fields may appear "
        "within the format hal-probe/1; none disappears or changes its meaning.",
        **parts[0],
        "$defs": dict(sorted(definitions.items())),
    }
    return msgspec.json.format(msgspec.json.encode(schema), indent=2).decode() + "\n"


if __name__ == "__main__":
    with open(FILE, "w", encoding="utf-8") as target:
        target.write(made())
