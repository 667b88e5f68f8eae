"""A label config for each recipe of `lsml init -c`, and one that needs several at once."""

from __future__ import annotations

TEXT = '<Text name="t" value="$text"/>'
HTML = '<HyperText name="h" value="$html"/>'
IMAGE = '<Image name="i" value="$image"/>'
AUDIO = '<Audio name="a" value="$audio"/>'
VIDEO = '<Video name="v" value="$video"/>'
SERIES = '<TimeSeries name="s" value="$csv" timeColumn="time"><Channel column="speed"/></TimeSeries>'
LABELS = '<Label value="First"/><Label value="Second" alias="2nd"/>'
CHOICES = LABELS.replace("Label ", "Choice ")


def _shape(tag: str) -> dict[str, str]:
    return {
        f"{tag}Labels": f'{IMAGE}<{tag}Labels name="c" toName="i">{LABELS}</{tag}Labels>',
        tag: f'{IMAGE}<{tag} name="c" toName="i"/>',
        f"{tag} with Labels": f'{IMAGE}<{tag} name="c" toName="i"/><Labels name="l" toName="i">{LABELS}</Labels>',
    }


_PARTS = {
    "Choices over text": f'{TEXT}<Choices name="c" toName="t">{CHOICES}</Choices>',
    "Choices over text, multiple": f'{TEXT}<Choices name="c" toName="t" choice="multiple">{CHOICES}</Choices>',
    "Choices over images": f'{IMAGE}<Choices name="c" toName="i">{CHOICES}</Choices>',
    "Choices over images, multiple": f'{IMAGE}<Choices name="c" toName="i" choice="multiple">{CHOICES}</Choices>',
    "Choices over audio": f'{AUDIO}<Choices name="c" toName="a">{CHOICES}</Choices>',
    "Choices over video": f'{VIDEO}<Choices name="c" toName="v">{CHOICES}</Choices>',
    "Choices over HyperText": f'{HTML}<Choices name="c" toName="h">{CHOICES}</Choices>',
    "Labels over text": f'{TEXT}<Labels name="c" toName="t">{LABELS}</Labels>',
    "HyperTextLabels": f'{HTML}<HyperTextLabels name="c" toName="h">{LABELS}</HyperTextLabels>',
    "Labels over HyperText": f'{HTML}<Labels name="c" toName="h">{LABELS}</Labels>',
    "Labels over audio": f'{AUDIO}<Labels name="c" toName="a">{LABELS}</Labels>',
    "TextArea over text": f'{TEXT}<TextArea name="c" toName="t"/>',
    "TextArea over images": f'{IMAGE}<TextArea name="c" toName="i"/>',
    "TextArea over audio": f'{AUDIO}<TextArea name="c" toName="a"/>',
    **_shape("Rectangle"),
    **_shape("Ellipse"),
    **_shape("Polygon"),
    **_shape("KeyPoint"),
    **_shape("Brush"),
    "Rating": f'{TEXT}<Rating name="c" toName="t" maxRating="3"/>',
    "Number": f'{TEXT}<Number name="c" toName="t" min="-3" max="4"/>',
    "DateTime": f'{TEXT}<DateTime name="c" toName="t" only="date"/>',
    "TextArea and DateTime over HyperText": f'{HTML}<TextArea name="c" toName="h"/><DateTime name="d" toName="h"/>',
    "Taxonomy": f'{TEXT}<Taxonomy name="c" toName="t"><Choice value="Asia"><Choice value="Japan"/></Choice>'
    '<Choice value="Europe"><Choice value="France" alias="fr"/></Choice></Taxonomy>',
    "Pairwise of texts": '<Text name="x" value="$x"/><Text name="y" value="$y"/><Pairwise name="c" toName="x,y"/>',
    "Pairwise of images": '<Image name="x" value="$x"/><Image name="y" value="$y"/><Pairwise name="c" toName="x,y"/>',
    "Ranker": '<List name="r" value="$items"/><Ranker name="c" toName="r"/>',
    "TimeSeriesLabels": f'{SERIES}<TimeSeriesLabels name="c" toName="s">{LABELS}</TimeSeriesLabels>',
    "TimeSeriesLabels, JSON": SERIES.replace(" timeC", ' valueType="json" timeC')
    + f'<TimeSeriesLabels name="c" toName="s">{LABELS}</TimeSeriesLabels>',
    "TimeSeriesLabels, tabs and dates": SERIES.replace(" timeC", ' sep="\\t" timeFormat="%Y-%m-%d %H:%M:%S" timeC')
    + f'<TimeSeriesLabels name="c" toName="s">{LABELS}</TimeSeriesLabels>',
    "VideoRectangle": f'{VIDEO}<VideoRectangle name="c" toName="v"/>',
    "VideoRectangle with Labels": f'{VIDEO}<VideoRectangle name="c" toName="v"/>'
    f'<Labels name="l" toName="v">{LABELS}</Labels>',
    "TimelineLabels": f'{VIDEO}<TimelineLabels name="c" toName="v">{LABELS}</TimelineLabels>',
    "ParagraphLabels": '<Paragraphs name="p" value="$dialogue" nameKey="who" textKey="said"/>'
    f'<ParagraphLabels name="c" toName="p">{LABELS}</ParagraphLabels>',
    "several": f'{TEXT}{IMAGE}<Choices name="mood" toName="t">{CHOICES}</Choices><Rating name="stars" toName="i"/>'
    f'<RectangleLabels name="my thing" toName="i">{LABELS}</RectangleLabels><Number name="my-thing" toName="t"/>'
    f'<Labels name="größe" toName="t">{LABELS}</Labels><TextArea name="class" toName="i"/>',
}
RECIPE_CONFIGS = {name: f"<View>{xml}</View>" for name, xml in _PARTS.items()}
