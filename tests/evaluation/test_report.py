"""Test the rendering of report pages in process."""

from __future__ import annotations

from lsml_cli.evaluation.evaluate import evaluate_outcomes
from lsml_cli.evaluation.gates import Gate, GateResult
from lsml_cli.evaluation.report import page
from lsml_cli.evaluation.report.examples import build_examples
from lsml_cli.evaluation.results import BaselineComparison, Evaluation, MetricDifference
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.failure_causes import FailureCauses
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Prediction
from lsml_cli.schema.tasks import AnnotatedTask, Annotation, Task
from tests.helpers.report_page import HOSTILE_TEXT, ParsedPage, require_self_contained

CONFIG = LabelConfig.parse(
    '<View><Text name="text" value="$text"/>'
    '<Choices name="mood" toName="text"><Choice value="good"/><Choice value="bad"/></Choices></View>'
)


def test_hostile_names_and_reasons_are_escaped() -> None:
    control = CONFIG.controls["mood"]
    raw = {"data": {"text": HOSTILE_TEXT}}
    examples = [
        AnnotatedTask(
            Task(i, i, raw["data"], raw),
            Annotation(
                i, [{"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": ["good"]}}]
            ),
        )
        for i in range(4)
    ]
    outcomes = [Prediction.of((control.region(task, {"choices": ["bad"]}, score=0.9),), "v1") for task, _ in examples]
    measured = evaluate_outcomes(CONFIG, examples, outcomes).controls["mood"]
    failed = FailureCauses()
    failed.add("encode", HOSTILE_TEXT, HOSTILE_TEXT)
    evaluation = Evaluation(
        HOSTILE_TEXT,
        tasks=4,
        annotations=4,
        controls={HOSTILE_TEXT: measured, "mood": measured},
        failed=failed,
        left_out={HOSTILE_TEXT: 1},
        unpredicted_controls=[HOSTILE_TEXT],
        comparison=BaselineComparison(HOSTILE_TEXT, {"mood": {"accuracy": MetricDifference(0.0, 0.5, None)}}),
        resamples=200,
    )
    html = page.render(
        evaluation,
        [GateResult(Gate(HOSTILE_TEXT, "f1", HOSTILE_TEXT, 0.5), None, HOSTILE_TEXT)],
        {"mood": build_examples(measured, CONFIG, Media(), None)},
        page.ReportInfo(annotations_name=HOSTILE_TEXT, label_studio_url="javascript:alert(1)"),
    )
    parsed = ParsedPage(html)
    require_self_contained(parsed)
    assert not parsed.all("a") or all((link["href"] or "").startswith("#") for link in parsed.all("a"))
    assert "\x00" not in html
    assert parsed.text.count("<script>alert(1)</script>") > 10
    assert [element for element in parsed.all("img")] == []
