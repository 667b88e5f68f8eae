"""Under which key of a task's data a path belongs: the one whose object shows it and that the model looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lsml_cli.errors import UsageError, closest_first, listed
from lsml_cli.schema.label_config import LabelConfig, Object

# Objects whose value is an address. A text is none: what it shows is the value itself.
SHOW_MEDIA = frozenset({"image", "audio", "audioplus", "video", "pdf", "object3d"})


def find_data_key(
    config: LabelConfig, fills: Mapping[str, Sequence[str]], wanted: str | None = None, *, pictures: bool = False
) -> str:
    """The data key for tasks that are made from paths: "image" for <Image name="img" value="$image"/>.

    fills     of the model: control tags, each with the object tags that it can be about; empty if it does not say
    wanted    the key that was asked for (`--data-key`)
    pictures  whether only an <Image> will do, because the paths are known to be those of pictures

    Of several objects those count that the model fills controls about, and of these the <Image>.
    Raises UsageError when there is no such key, or more than one.
    """
    tags = frozenset({"image"}) if pictures else SHOW_MEDIA
    fitting = [obj for obj in config.objects.values() if obj.key is not None and obj.tag.lower() in tags]
    if not fitting:
        raise _nothing_to_show(config, pictures)
    single = [obj for obj in fitting if "valueList" not in obj.attrs]
    if not single:
        raise UsageError(
            f"{fitting[0]} shows a list of pictures, and a path makes a task of one.",
            'Use value="$…" instead of valueList, or write the tasks as JSON.',
        )
    keys = _keys(single)
    if wanted is not None:
        if wanted not in keys:
            what = "picture" if pictures else "media"
            raise UsageError(
                f'--data-key {wanted}: the label config shows no {what} from "${wanted}".',
                f"It has: {listed(closest_first(wanted, keys))}.",
            )
        return wanted
    about = {obj.name for control, over in fills.items() for _, obj in config.pairs(control, over)}
    objects = [obj for obj in single if obj.name in about] or single
    objects = [obj for obj in objects if obj.tag.lower() == "image"] or objects
    if len(keys := _keys(objects)) > 1:
        raise UsageError(
            f"The label config has several objects that a path could be for: {listed(map(str, objects))}.",
            f"Name the key with --data-key: {' or '.join(keys)}.",
        )
    return keys[0]


def _keys(objects: Sequence[Object]) -> list[str]:
    return list(dict.fromkeys(obj.key for obj in objects if obj.key is not None))


def _nothing_to_show(config: LabelConfig, pictures: bool) -> UsageError:
    there = listed(map(str, config.objects.values())) or "no object at all"
    if pictures:
        return UsageError(
            f"A folder is read for its pictures, and the label config shows none from a task: it has {there}.",
            "Name a file of tasks; other media can be listed, one path a line, with --from paths.",
        )
    return UsageError(
        f"The label config shows no picture, sound or video from a task: it has {there}. A path is no text.",
        "Put the texts themselves into tasks, as JSON or CSV, and leave out --from paths.",
    )
