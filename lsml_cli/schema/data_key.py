"""Find the key of a task's data for tasks that are made from paths, or from lines of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.errors import UsageError, format_list, sort_by_similarity
from lsml_cli.schema.label_config import LabelConfig, Object

# Objects whose value is an address. A text is not: it shows the value itself.
MEDIA_TAGS = frozenset({"image", "audio", "audioplus", "video", "pdf", "object3d"})
TEXT_TAGS = frozenset({"text", "hypertext"})  # whose value is one string, shown as it is


def find_data_key(
    config: LabelConfig,
    supported_controls: Mapping[str, Sequence[str]],
    requested_key: str | None = None,
    *,
    images_only: bool = False,
) -> str:
    """Return the data key for tasks that are made from paths: "image" for <Image name="img" value="$image"/>.

    If there are several media objects, those count that the model fills controls about, and among these images.

    Args:
        config: Label config of the project.
        supported_controls: Control tags that the model fills, each with the object tags that it may be about; empty if
            the model does not say.
        requested_key: The key given by `--data-key`.
        images_only: Whether only an <Image> will do, because the paths are known to be images.

    Raises:
        UsageError: There is no such key, or more than one.
    """
    tags = frozenset({"image"}) if images_only else MEDIA_TAGS
    media_objects = [obj for obj in config.objects.values() if obj.data_key is not None and obj.tag.lower() in tags]
    if not media_objects:
        raise _no_media_error(config, images_only)
    single = [obj for obj in media_objects if "valueList" not in obj.attrs]
    if not single:
        raise UsageError(
            f"{media_objects[0]} shows a list of images, and a path makes a task of one.",
            'Use value="$…" instead of valueList, or write the tasks as JSON.',
        )
    keys = _data_keys(single)
    if requested_key is not None:
        return _require_shown(requested_key, keys, "image" if images_only else "media")
    objects = _supported_objects(config, single, supported_controls)
    objects = [obj for obj in objects if obj.tag.lower() == "image"] or objects
    return _require_single_key(objects, "a path")


def find_text_key(
    config: LabelConfig, supported_controls: Mapping[str, Sequence[str]], requested_key: str | None = None
) -> str:
    """Return the data key for tasks that are made from lines: "text" for <Text name="txt" value="$text"/>.

    If there are several texts, those count that the model fills controls about. The arguments are those of
    `find_data_key`.

    Raises:
        UsageError: There is no such key, or more than one.
    """
    texts = [obj for obj in config.objects.values() if obj.data_key is not None and obj.tag.lower() in TEXT_TAGS]
    if not texts:
        known = format_list(map(str, config.objects.values())) or "no object at all"
        raise UsageError(
            f"The label config shows no text from a task: it has {known}.",
            "Paths and URLs are listed with --from paths; other data come in tasks, as JSON or CSV.",
        )
    keys = _data_keys(texts)
    if requested_key is not None:
        return _require_shown(requested_key, keys, "text")
    objects = _supported_objects(config, texts, supported_controls)
    return _require_single_key(objects, "a line")


def _require_shown(key: str, keys: Sequence[str], what: str) -> str:
    """Return the key of --data-key; raise UsageError if the label config shows nothing of this kind from it."""
    if key not in keys:
        raise UsageError(
            f'--data-key {key}: the label config shows no {what} from "${key}".',
            f"It has: {format_list(sort_by_similarity(key, keys))}.",
        )
    return key


def _require_single_key(objects: Sequence[Object], entry: str) -> str:
    """Return the data key of the objects; raise UsageError if they have several, one of which the entry is for."""
    if len(keys := _data_keys(objects)) > 1:
        raise UsageError(
            f"The label config has several objects that {entry} could be for: {format_list(map(str, objects))}.",
            f"Name the key with --data-key: {' or '.join(keys)}.",
        )
    return keys[0]


def _supported_objects(
    config: LabelConfig, objects: Sequence[Object], supported_controls: Mapping[str, Sequence[str]]
) -> Sequence[Object]:
    """Return the objects that the model fills controls about, all of them if there are none."""
    supported_names = {
        obj.name
        for control_tag, object_tags in supported_controls.items()
        for _, obj in config.find_pairs(control_tag, object_tags)
    }
    return [obj for obj in objects if obj.name in supported_names] or objects


def _data_keys(objects: Sequence[Object]) -> list[str]:
    return list(dict.fromkeys(obj.data_key for obj in objects if obj.data_key is not None))


def _no_media_error(config: LabelConfig, images_only: bool) -> UsageError:
    known = format_list(map(str, config.objects.values())) or "no object at all"
    if images_only:
        return UsageError(
            f"A folder is read for its images, and the label config shows none from a task: it has {known}.",
            "Name a file of tasks; other media can be listed, one path a line, with --from paths.",
        )
    return UsageError(
        f"The label config shows no image, audio or video from a task: it has {known}. A path is no text.",
        "Texts are read with --from lines, one text a line, or as tasks in JSON or CSV.",
    )
