"""Tell which tasks a trained version has not seen, so that it can be evaluated on them."""

from __future__ import annotations

from collections.abc import Callable

from lsml_cli.errors import UsageError
from lsml_cli.media.fetcher import Media
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry import versions
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.tasks import Task
from lsml_cli.training.splits import is_held_out

_OTHER_TASKS_HINT = "Measure it with tasks that it was not trained on, without --held-out."


def make_unseen_filter(spec: ModelSpec, media: Media | None = None) -> Callable[[Task], bool]:
    """Return a function that tells whether the fit of a trained version held out a task.

    It is also true for tasks that came later and would have been held out.

    Raises:
        UsageError: This is not known for the model.
    """
    if spec.path is None:
        raise UsageError(f"{spec.name} is not a trained version, so nothing was held out.", "Leave out --held-out.")
    version = versions.read(spec.path)
    share, seed = version.counts.get("holdout_share"), version.counts.get("seed")
    if version.refit:
        raise UsageError(f"{spec.model_version} was trained again on its held-out tasks (--refit).", _OTHER_TASKS_HINT)
    if not isinstance(share, float | int) or not isinstance(seed, int):
        raise UsageError(
            f"{spec.model_version} was measured with a file of its own, {version.counts.get('holdout_file')}.",
            "Measure it with that file, without --held-out.",
        )
    if not share:
        raise UsageError(f"{spec.model_version} was trained on everything (--holdout 0).", _OTHER_TASKS_HINT)
    config = LabelConfig.parse(version.label_config)
    return lambda task: is_held_out(task, config, share, seed, media)
