"""Models of other packages: entry points of the group `lsml.models`.

    [project.entry-points."lsml.models"]
    shouting = "acme_models:Shouting"

Reading them imports none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "lsml.models"


@dataclass(frozen=True)
class Plugin:
    """One entry point: `lsml predict --model NAME` means the class `target`, which `package` `version` brings."""

    name: str
    target: str
    package: str
    version: str


def find_plugins() -> list[Plugin]:
    """In the order in which Python finds their packages; of two with one name the first counts."""
    import importlib.metadata  # costs 20 ms, and only a plugged-in model needs it

    return [
        Plugin(
            point.name,
            point.value.partition("[")[0].replace(" ", ""),  # what may follow are extras, which nothing here reads
            point.dist.name if point.dist else "?",
            point.dist.version if point.dist else "?",
        )
        for point in importlib.metadata.entry_points(group=GROUP)
    ]
