"""`lsml push --keep-versions N`: delete what older versions of the pushed model have predicted."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from lsml_cli.errors import format_list
from lsml_cli.label_studio.project_predictions import ProjectPredictions
from lsml_cli.label_studio.push_context import PushContext
from lsml_cli.registry.versions import is_version_name, version_order


def select_old_versions(existing: Iterable[str], pushed: str, keep: int, protected: Collection[str] = ()) -> list[str]:
    """Return the versions of the pushed model beyond the newest ones, oldest first.

    A version of a model is recognized by the name that `lsml fit` gave it, "news@20261120T213015". All others stay:
    those of other models, of untrained models, and whatever people call theirs.

    Args:
        existing: The versions that the project has predictions of.
        pushed: The version that was pushed; it stays, however old it is.
        keep: How many of the newest stay.
        protected: Versions that stay besides.
    """
    if not is_version_name(pushed):
        return []
    model, _, name = pushed.rpartition("@")
    prefix = f"{model}@"
    suffixes = (version.removeprefix(prefix) for version in existing if version.startswith(prefix))
    ordered = sorted((order, suffix) for suffix in {*suffixes, name} if (order := version_order(suffix)) is not None)
    old = [f"{prefix}{suffix}" for _, suffix in ordered[:-keep]]
    return [version for version in old if version != pushed and version not in protected]


def delete_old_versions(context: PushContext, keep: int) -> tuple[dict[str, int], Iterator[str]]:
    """Delete the old versions of the model that was pushed, or only find them in a dry run.

    Returns:
        The number of predictions of each deleted version, and sentences about them.

    Raises:
        LsmlError: A request failed.
    """
    pushed = context.version or ""
    if context.rejections.count or context.spool.counts["failed"]:
        return {}, iter(["Older versions were not deleted, because not every record has given a prediction."])
    if not is_version_name(pushed):
        return {}, iter([f"No version was deleted: {pushed} is no version that `lsml fit` has named."])
    project = context.options.project
    existing = context.client.count_versions(project)
    shown = context.client.get_project(project).get("model_version") or ""
    deleted: dict[str, int] = {}
    for version in select_old_versions(existing, pushed, keep, {shown}):
        count = existing[version]
        if not context.options.dry_run:
            count = ProjectPredictions(context.client, project, version).delete_all(count)
        deleted[version] = count
    return deleted, _describe_deleted(deleted, context.options.dry_run)


def _describe_deleted(deleted: dict[str, int], dry_run: bool) -> Iterator[str]:
    if deleted:
        done = "would be deleted" if dry_run else "were deleted"
        versions = format_list(f"{version} ({count:,} predictions)" for version, count in deleted.items())
        yield f"Older versions {done}: {versions}."
