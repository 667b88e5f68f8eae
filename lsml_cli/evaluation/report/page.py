"""The whole page, and the file that it is written to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.evaluation.evaluate import Evaluation
from lsml_cli.evaluation.gates import ComparisonResult, GateResult
from lsml_cli.evaluation.report import gallery, sections
from lsml_cli.evaluation.report.markup import escape_text, format_name, pluralize
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig

HTML_PREFIX = b"<!doctype html>"
# Nothing is loaded from anywhere, whatever the texts of strangers hold.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class ReportInfo:
    """What the page says about itself.

    annotated         the name of the file with the annotations, or what else was measured on
    label_studio_url  where links to tasks lead; None: nowhere
    """

    annotations_name: str
    label_studio_url: str | None = None


def require_writable(path: Path | None) -> None:
    """Raises UsageError for a place where no report can be: before hours of work, not after them."""
    if path is None:
        return
    if path.is_dir():
        raise UsageError(f"--report {path} is a folder.", "Name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.", f"Create it first: mkdir -p {path.parent}")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(HTML_PREFIX)).lower() != HTML_PREFIX:
                raise UsageError(f"--report {path} is there already, and is no report.", "Name another file.")


def write(
    path: Path,
    evaluation: Evaluation,
    gate_results: Sequence[GateResult | ComparisonResult],
    config: LabelConfig,
    media: Media,
    info: ReportInfo,
) -> None:
    """Fetch the pictures that are shown, and write the page; it appears when it is complete.

    Raises OutputError when it cannot be written.
    """
    examples = {
        control: gallery.build_examples(judged, config, media, info.label_studio_url)
        for control, judged in evaluation.controls.items()
    }
    media.close()
    body = render(evaluation, gate_results, examples, info).encode("utf-8", "replace")
    aside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(body)
            return
        try:
            aside.write_bytes(body)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"The report {path} cannot be written: {error.strerror}.") from None


def render(
    evaluation: Evaluation,
    gate_results: Sequence[GateResult | ComparisonResult],
    examples: Mapping[str, Sequence[gallery.Example]],
    info: ReportInfo,
) -> str:
    """The page as HTML. The same evaluation gives the same page."""
    compared = evaluation.comparison
    parts = [
        sections.render_control(
            judged,
            compared.differences.get(control) if compared else None,
            compared.name if compared else "",
            examples.get(control, ()),
        )
        for control, judged in evaluation.controls.items()
    ]
    style = (files("lsml_cli.evaluation.report") / "style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{CONTENT_SECURITY_POLICY}">'
        f"<title>{escape_text(evaluation.name)}: evaluation</title><style>{style}</style></head><body>"
        '<a class="skip" href="#main">Skip to the numbers</a>'
        f'{_render_header(evaluation, info)}<main id="main">{_render_gates(gate_results)}{"".join(parts)}</main>'
        f"<footer>{_render_footer(evaluation)}</footer></body></html>\n"
    )


def _render_header(evaluation: Evaluation, info: ReportInfo) -> str:
    links = [f'<a href="#c-{escape_text(control)}">{format_name(control)}</a>' for control in evaluation.controls]
    nav = f'<nav aria-label="Controls">{"".join(links)}</nav>' if len(links) > 1 else ""
    several = (
        f", {pluralize(evaluation.annotations, 'annotation')}" if evaluation.annotations != evaluation.tasks else ""
    )
    facts_of = [f"{pluralize(evaluation.tasks, 'annotated task')}{several}"]
    if failed := sum(evaluation.failed.values()):
        facts_of.append(f'<span class="bad-text">{failed:,} failed, which count as wrong</span>')
    if left_out := sum(evaluation.left_out.values()):
        facts_of.append(f"{left_out:,} left out")
    against = f"<small>against {format_name(info.annotations_name)}</small>"
    return (
        f'<header><p class="over">Evaluation</p><h1>{format_name(evaluation.name)} {against}</h1>'
        f'<p class="facts">{" · ".join(facts_of)}</p>{_render_reasons(evaluation)}{nav}</header>'
    )


def _render_reasons(evaluation: Evaluation) -> str:
    rows = [("failed", reason, count) for reason, count in evaluation.failed.items()]
    rows += [("left out", reason, count) for reason, count in evaluation.left_out.items()]
    rows += [("nothing predicted", control, 0) for control in evaluation.unpredicted_controls]
    if not rows:
        return ""
    cells = "".join(
        f'<tr><td>{what}</td><td>{format_name(reason)}</td><td class="n">{f"{count:,}" if count else ""}</td></tr>'
        for what, reason, count in rows
    )
    return (
        f"<details><summary>What was not measured, or failed</summary><table><tbody>{cells}</tbody></table></details>"
    )


def _render_gates(gate_results: Sequence[GateResult | ComparisonResult]) -> str:
    if not gate_results:
        return ""
    items = "".join(
        f'<li><span class="verdict {kind}">{said}</span> {escape_text(each)}</li>'
        for each in gate_results
        for kind, said in [("better", "passed") if each.passed else ("worse", "missed")]
    )
    return f'<section class="box gates" aria-labelledby="gates"><h2 id="gates">Gates</h2><ul>{items}</ul></section>'


def _render_footer(evaluation: Evaluation) -> str:
    if not evaluation.resamples:
        return "Nothing was measured: people and predictions fill no control together."
    return (
        f"Intervals hold 95 %: percentiles of {evaluation.resamples:,} bootstrap samples of the tasks (seed {evaluation.seed}). "
        "A difference is one on the same samples. Written by lsml evaluate."
    )
