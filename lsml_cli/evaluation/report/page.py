"""Render the report page, and write it to a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsml_cli.errors import UsageError
from lsml_cli.evaluation.gates import ComparisonResult, GateResult
from lsml_cli.evaluation.report.examples import Example, build_examples
from lsml_cli.evaluation.report.sections import build_section
from lsml_cli.evaluation.results import Evaluation
from lsml_cli.io.output import write_document
from lsml_cli.io.output_paths import is_stdout
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig

HTML_PREFIX = b"<!doctype html>"


@dataclass(frozen=True)
class ReportInfo:
    """What the page says about itself.

    Attributes:
        annotations_name: The name of the file with the annotations, or what else the evaluation is based on.
        label_studio_url: The server that links to tasks lead to; None for no links.
    """

    annotations_name: str
    label_studio_url: str | None = None


def require_writable(path: Path | None, option: str = "--report") -> None:
    """Check before the work that a page can be written to `path`.

    Raises:
        UsageError: It is a folder, its folder does not exist, or it is a file that is not a page.
    """
    if path is None or is_stdout(path):
        return
    if path.is_dir():
        raise UsageError(f"{option} {path} is a folder.", "Name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent}.", f"Create it first: mkdir -p {path.parent}")
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            if file.read(len(HTML_PREFIX)).lower() != HTML_PREFIX:
                raise UsageError(f"{option} {path} already exists and is not a report.", "Name another file.")


def write(
    path: Path,
    evaluation: Evaluation,
    gate_results: Sequence[GateResult | ComparisonResult],
    config: LabelConfig,
    media: Media,
    info: ReportInfo,
) -> None:
    """Fetch the images to show, and write the page; `path` may be "-" for standard output.

    A file is replaced only when the page is complete.

    Raises:
        OutputClosed: The reader of standard output has closed it.
        OutputError: The page cannot be written.
    """
    examples = {
        name: build_examples(control_evaluation, config, media, info.label_studio_url)
        for name, control_evaluation in evaluation.controls.items()
    }
    media.close()
    body = render(evaluation, gate_results, examples, info).encode("utf-8", "replace")
    write_document(path, body, "The report")


def render(
    evaluation: Evaluation,
    gate_results: Sequence[GateResult | ComparisonResult],
    examples: Mapping[str, Sequence[Example]],
    info: ReportInfo,
) -> str:
    """Render the page as HTML. The same evaluation gives the same page."""
    from lsml_cli.evaluation.report.templating import create_environment

    comparison = evaluation.comparison
    sections = [
        build_section(
            control_evaluation,
            comparison.differences.get(name) if comparison else None,
            comparison.name if comparison else "",
            examples.get(name, ()),
        )
        for name, control_evaluation in evaluation.controls.items()
    ]
    template = create_environment().get_template("page.html.j2")
    return template.render(evaluation=evaluation, info=info, gate_results=gate_results, sections=sections)
