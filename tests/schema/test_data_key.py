"""Choose the key of a task's data that gets the paths of a folder or a list."""

from __future__ import annotations

from typing import Any

import pytest

from lsml_cli.errors import UsageError
from lsml_cli.schema.data_key import find_data_key
from lsml_cli.schema.label_config import LabelConfig

IMAGE, THUMB = '<Image name="img" value="$image"/>', '<Image name="small" value="$thumb"/>'
TEXT, SOUND = '<Text name="txt" value="$text"/>', '<Audio name="snd" value="$audio"/>'


def key_of(
    objects: str, *shown: str, supported_controls: dict[str, tuple[str, ...]] | None = None, **options: Any
) -> str:
    controls = [f'<Choices name="of-{name}" toName="{name}"><Choice value="a"/></Choices>' for name in shown]
    return find_data_key(
        LabelConfig.parse(f"<View>{objects}{''.join(controls)}</View>"), supported_controls or {}, **options
    )


def test_data_key_is_that_of_object_model_supports():
    assert key_of(IMAGE, "img") == "image"
    assert key_of(TEXT + IMAGE, "txt", "img") == "image"
    assert key_of(SOUND + IMAGE, "snd", "img") == "image"
    assert key_of(SOUND + IMAGE, "snd", "img", supported_controls={"Choices": ("Audio",)}) == "audio"
    assert key_of(IMAGE + THUMB, "small", supported_controls={"Choices": ("Image",)}) == "thumb"
    assert key_of(IMAGE + IMAGE.replace("img", "twice"), "img", "twice") == "image"
    assert key_of(IMAGE + THUMB, "img", "small", requested_key="thumb") == "thumb"
    assert key_of(SOUND, "snd") == "audio"
    assert key_of(IMAGE + THUMB.replace("value", "valueList"), "img") == "image"


@pytest.mark.parametrize(
    ("objects", "options", "sentence"),
    [
        (IMAGE + THUMB, {}, "several objects that a path could be for: .*Name the key with --data-key: image or thumb"),
        (TEXT, {}, "A path is no text"),
        ('<Image name="img" value="same.png"/>', {}, "shows no image, audio or video from a task"),
        (SOUND, {"images_only": True}, "A folder is read for its images"),
        (IMAGE.replace("value", "valueList"), {}, "shows a list of images"),
        (IMAGE + TEXT, {"requested_key": "text"}, "--data-key text: .*It has: image"),
        (IMAGE + SOUND, {"requested_key": "audio", "images_only": True}, "--data-key audio: .*It has: image"),
    ],
)
def test_data_key_errors_name_candidates(objects, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        key_of(objects, **options)
