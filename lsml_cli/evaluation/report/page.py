"""The whole page, and the file that it is written to."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from lsml_cli.errors import OutputError, UsageError
from lsml_cli.evaluation.evaluate import Evaluation
from lsml_cli.evaluation.gates import Comparison, Verdict
from lsml_cli.evaluation.report import gallery, sections
from lsml_cli.evaluation.report.markup import counted, escaped, name
from lsml_cli.media.fetcher import Media
from lsml_cli.schema.label_config import LabelConfig

BEGINNING = b"<!doctype html>"
# Nothing is loaded from anywhere, whatever the texts of strangers hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Facts:
    """What the page says about itself.

    annotated         the name of the file with the annotations, or what else was measured on
    label_studio_url  where links to tasks lead; None: nowhere
    """

    annotated: str
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
            if file.read(len(BEGINNING)).lower() != BEGINNING:
                raise UsageError(f"--report {path} is there already, and is no report.", "Name another file.")


def write(
    path: Path,
    found: Evaluation,
    verdicts: Sequence[Verdict | Comparison],
    config: LabelConfig,
    media: Media,
    facts: Facts,
) -> None:
    """Fetch the pictures that are shown, and write the page; it appears when it is complete.

    Raises OutputError when it cannot be written.
    """
    examples = {
        control: gallery.examples_of(judged, config, media, facts.label_studio_url)
        for control, judged in found.controls.items()
    }
    media.close()
    body = render(found, verdicts, examples, facts).encode("utf-8", "replace")
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
    found: Evaluation,
    verdicts: Sequence[Verdict | Comparison],
    examples: Mapping[str, Sequence[gallery.Example]],
    facts: Facts,
) -> str:
    """The page as HTML. The same evaluation gives the same page."""
    compared = found.compared
    parts = [
        sections.control_section(
            judged,
            compared.differences.get(control) if compared else None,
            compared.name if compared else "",
            examples.get(control, ()),
        )
        for control, judged in found.controls.items()
    ]
    style = (files("lsml_cli.evaluation.report") / "style.css").read_text("utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escaped(found.name)}: evaluation</title><style>{style}</style></head><body>"
        '<a class="skip" href="#main">Skip to the numbers</a>'
        f'{_header(found, facts)}<main id="main">{_gates(verdicts)}{"".join(parts)}</main>'
        f"<footer>{_footer(found)}</footer></body></html>\n"
    )


def _header(found: Evaluation, facts: Facts) -> str:
    links = [f'<a href="#c-{escaped(control)}">{name(control)}</a>' for control in found.controls]
    nav = f'<nav aria-label="Controls">{"".join(links)}</nav>' if len(links) > 1 else ""
    several = f", {counted(found.annotations, 'annotation')}" if found.annotations != found.tasks else ""
    facts_of = [f"{counted(found.tasks, 'annotated task')}{several}"]
    if failed := sum(found.failed.values()):
        facts_of.append(f'<span class="bad-text">{failed:,} failed, which count as wrong</span>')
    if left_out := sum(found.left_out.values()):
        facts_of.append(f"{left_out:,} left out")
    against = f"<small>against {name(facts.annotated)}</small>"
    return (
        f'<header><p class="over">Evaluation</p><h1>{name(found.name)} {against}</h1>'
        f'<p class="facts">{" · ".join(facts_of)}</p>{_reasons(found)}{nav}</header>'
    )


def _reasons(found: Evaluation) -> str:
    rows = [("failed", reason, count) for reason, count in found.failed.items()]
    rows += [("left out", reason, count) for reason, count in found.left_out.items()]
    rows += [("nothing predicted", control, 0) for control in found.silent]
    if not rows:
        return ""
    cells = "".join(
        f'<tr><td>{what}</td><td>{name(reason)}</td><td class="n">{f"{count:,}" if count else ""}</td></tr>'
        for what, reason, count in rows
    )
    return (
        f"<details><summary>What was not measured, or failed</summary><table><tbody>{cells}</tbody></table></details>"
    )


def _gates(verdicts: Sequence[Verdict | Comparison]) -> str:
    if not verdicts:
        return ""
    items = "".join(
        f'<li><span class="verdict {kind}">{said}</span> {escaped(each)}</li>'
        for each in verdicts
        for kind, said in [("better", "passed") if each.passed else ("worse", "missed")]
    )
    return f'<section class="box gates" aria-labelledby="gates"><h2 id="gates">Gates</h2><ul>{items}</ul></section>'


def _footer(found: Evaluation) -> str:
    if not found.resamples:
        return "Nothing was measured: people and predictions fill no control together."
    return (
        f"Intervals hold 95 %: percentiles of {found.resamples:,} bootstrap samples of the tasks (seed {found.seed}). "
        "A difference is one on the same samples. Written by lsml evaluate."
    )
