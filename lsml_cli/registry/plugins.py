"""Find the models of other packages: entry points of the group `lsml.models`.

    [project.entry-points."lsml.models"]
    shouting = "acme_models:Shouting"

Reading the entry points does not import the packages.
"""

from __future__ import annotations

from dataclasses import dataclass

GROUP = "lsml.models"


@dataclass(frozen=True)
class Plugin:
    """One entry point.

    Attributes:
        name: The name that `--model` takes.
        target: The class: "package.module:Class".
        package: The distribution that declares it.
        version: Version of the distribution.
    """

    name: str
    target: str
    package: str
    version: str


def find_plugins() -> list[Plugin]:
    """List the entry points in the order in which Python finds their packages; the first one of a name counts."""
    import importlib.metadata  # takes 20 ms, which a built-in model does not need

    return [
        Plugin(
            point.name,
            point.value.partition("[")[0].replace(" ", ""),  # an entry point may end with extras: "module:Class [fast]"
            point.dist.name if point.dist else "?",
            point.dist.version if point.dist else "?",
        )
        for point in importlib.metadata.entry_points(group=GROUP)
    ]
