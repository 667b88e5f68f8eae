"""`lsml evaluate`: predictions against annotations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import completion, options

if TYPE_CHECKING:
    from lsml_cli.evaluation.evaluate import PredictionSource
    from lsml_cli.media.fetcher import Media
    from lsml_cli.models.spec import ModelSpec
    from lsml_cli.schema.label_config import LabelConfig


def evaluate(
    annotated: Annotated[str, typer.Argument(metavar="ANNOTATED", help="A file of annotated tasks, or - for stdin.")],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="The model to measure, see predict.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", metavar="FILE", help="Measure this file instead; what predict wrote, any shape."),
    ] = None,
    model_version: Annotated[
        str | None,
        typer.Option(
            "--model-version", metavar="TEXT", help="Which predictions of FILE; the last of a task if not given."
        ),
    ] = None,
    label_config: options.LabelConfigFile = None,
    annotation_policy: Annotated[
        Literal["first", "last", "all"],
        typer.Option("--annotation", help="Which counts of several; a ground truth goes first, a skipped one never."),
    ] = "last",
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Only tasks that no model here was trained on: those that lsml fit held out."),
    ] = False,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            metavar="X",
            help="Regions that count for precision and recall; all for mAP.",
        ),
    ] = 0.0,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=VALUE",
            help="Exit 4 when below: accuracy=0.98, f1:spam=0.9, label.map50=0.6; above for cer, wer; repeat.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="MODEL|FILE",
            autocompletion=completion.complete_models,
            help="Another model, or another file of predictions: measured on the same tasks.",
        ),
    ] = None,
    fail_if_worse: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if-worse",
            metavar="METRIC[=MARGIN]",
            help="Exit 4 when worse than --compare by more than the margin (0 if not given); repeat.",
        ),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers as JSON.")] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write them as one HTML page to look at.")
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            "--examples", min=0, metavar="N", help="Tasks in the report where model and people disagree most."
        ),
    ] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Of the bootstrap.")] = 0,
    model_params: options.ModelParams = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    document_root: options.DocumentRoot = None,
    upload_root: options.UploadRoot = None,
    label_studio_url: options.LabelStudioUrl = None,
    maps: options.MediaMaps = None,
    media_cache: options.MediaCache = None,
    media_cache_size: options.MediaCacheSize = "10G",
    quiet: options.Quiet = False,
    settings: options.SettingsFile = None,
    show_settings: options.ShowSettings = False,
) -> None:
    """Measure a model, or a file of predictions, against the annotations of ANNOTATED.

    Choices: accuracy, F1, calibration; regions of pictures: mAP, precision, recall; texts: CER, WER, detection.
    Intervals of 95 % are from a bootstrap over tasks. Numbers go to stdout, everything else to stderr.
    Exit code 0: fine; 3: done, but some tasks could not be read, or failed (they count as wrong); 4: a gate was missed,
    or it is worse than what it was compared with; 1: failed; 2: wrong usage.

    Examples:

        lsml evaluate export.json --model models/news --fail-under macro-f1=0.9 --report report.html

        lsml evaluate export.json -m models/new --compare models/news --held-out --fail-if-worse accuracy=0.01
    """
    from lsml_cli.commands.console import evaluate_report
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.commands.media_options import build_media
    from lsml_cli.errors import InputError, UsageError
    from lsml_cli.evaluation import evaluate as evaluation
    from lsml_cli.evaluation import gates
    from lsml_cli.evaluation.report import page
    from lsml_cli.inference import plan
    from lsml_cli.io import task_reader
    from lsml_cli.io.output_paths import require_different_files
    from lsml_cli.io.stdout import reserve_stdout
    from lsml_cli.training import fit as training

    if (model is None) == (predictions is None):
        raise UsageError("What should be measured?", "Name either --model MODEL or --predictions FILE.")
    if fail_if_worse and compare is None:
        raise UsageError("--fail-if-worse has nothing to go by.", "Name what to compare with: --compare MODEL")
    if model_version is not None and predictions is None:
        raise UsageError("--model-version chooses among the predictions of a file.", "Leave it out, or --predictions.")
    with_file = compare is not None and not compare.endswith(".py") and Path(compare).is_file()
    specs = _ModelSpecs(model, compare if not with_file else None, model_params or [])
    config = specs.label_config(label_config)
    known = evaluation.measurable_controls(config)
    wanted = gates.parse_gates(fail_under or [], *known)
    not_worse = gates.parse_comparisons(fail_if_worse or [], *known)
    summary_file.require_writable(json_file, "--json")
    page.require_writable(report)
    require_different_files(
        {
            "the annotated tasks": annotated,
            "the predictions": str(predictions) if predictions else None,
            "what it is compared with": compare if with_file else None,
            "the label config": str(label_config) if label_config else None,
        },
        {"--json": str(json_file) if json_file else None, "--report": str(report) if report else None},
    )
    media = build_media(
        root=plan.media_root(annotated),
        document_root=document_root,
        upload_root=upload_root,
        label_studio_url=label_studio_url,
        maps=maps or [],
        cache=media_cache,
        cache_size=media_cache_size,
    )
    fitted = [spec for spec in (specs.model, specs.compared) if spec is not None]
    if held_out and not fitted:
        raise UsageError("--held-out is about what a model was trained on.", "Name one with --model or --compare.")
    sides = [training.make_unseen_filter(spec, media) for spec in fitted] if held_out else []
    with Console(quiet) as console:
        for warning in config.warnings:
            console.note(warning)
        with reserve_stdout(), ExitStack() as stack:
            opener = _SourceOpener(stack, config, media, device, batch_size)
            subject = (
                opener.open_model(specs.model) if specs.model else opener.open_file(str(predictions), model_version)
            )
            other = opener.open_model(specs.compared) if specs.compared else None
            if compare and with_file:
                other = opener.open_file(compare, None)
            found = evaluation.evaluate(
                task_reader.read_tasks(annotated, controls=frozenset(config.controls)),
                config,
                subject,
                other,
                annotation_policy=annotation_policy,
                threshold=threshold,
                max_examples=examples,
                seed=seed,
                is_unseen=lambda task: all(unseen(task) for unseen in sides),
                progress=lambda done, failed: console.progress(done, failed, None),
            )
            opener.require_versions()
            for sentence in opener.unreadable_notes():
                console.note(sentence, important=True)
        if not found.tasks:
            raise InputError(
                f"There is no task to measure with: {evaluate_report.format_exclusions(found)}.", _ANNOTATE_HINT
            )
        verdicts = gates.evaluate_gates(wanted, found.metrics, "annotated task")
        comparisons = found.compare_gates(not_worse)
        judged = {"gates": [each.to_json() for each in verdicts], "not_worse": [each.to_json() for each in comparisons]}
        summary_file.write_summary(json_file, found.to_json() | judged)
        if report is not None:
            facts = page.ReportInfo(annotations_name=Path(annotated).name, label_studio_url=label_studio_url)
            page.write(report, found, [*verdicts, *comparisons], config, media, facts)
        evaluate_report.print_evaluation(found)
        for sentence in evaluate_report.summary_lines(found, [*verdicts, *comparisons]):
            console.note(sentence)
        for sentence in evaluate_report.unreadable_lines(found, annotated):
            console.note(sentence, important=True)
        if report is not None:
            console.note(f"Wrote {report}.")
    evaluate_report.require_gates_passed(found, [*verdicts, *comparisons])
    if found.failed or found.left_out.get("unreadable") or opener.is_truncated:
        raise typer.Exit(3)


_ANNOTATE_HINT = "Export tasks that have been annotated, from the project that was predicted."


class _ModelSpecs:
    """The models that are named, and the label config that they agree on."""

    def __init__(self, model: str | None, compared: str | None, params: list[str]) -> None:
        from lsml_cli.registry import resolve

        self.model: ModelSpec | None = resolve.find_model(model, resolve.parse_params(params)) if model else None
        self.compared: ModelSpec | None = resolve.find_model(compared) if compared else None

    def label_config(self, path: Path | None) -> LabelConfig:
        from lsml_cli.errors import UsageError
        from lsml_cli.registry import resolve
        from lsml_cli.schema.label_config import LabelConfig

        if path is not None:
            return LabelConfig.load(path)
        for spec in (self.model, self.compared):
            if spec is not None and (config := resolve.stored_label_config(spec)) is not None:
                return config
        raise UsageError("A label config is needed.", "Name the labelling XML with --label-config FILE.")


class _SourceOpener:
    """Opens what is to be measured; everything is closed with the stack."""

    def __init__(
        self,
        stack: ExitStack,
        config: LabelConfig,
        media: Media,
        device: str,
        batch_size: int | None,
    ) -> None:
        from lsml_cli.evaluation.prediction_file import PredictionFile

        self._stack = stack
        self._config = config
        self._media = media
        self._device = device
        self._batch_size = batch_size
        self._files: list[PredictionFile] = []

    def open_model(self, spec: ModelSpec) -> PredictionSource:
        import os

        from lsml_cli.evaluation.evaluate import ModelPredictionSource, model_output_controls
        from lsml_cli.inference.placement import find_devices, open_replicas

        family = spec.model_class()
        [device, *_] = find_devices(self._device, family)
        workers = (os.cpu_count() or 1) if family.parallelism == "threads" else 1
        opened = open_replicas(spec, self._config, devices=[device], workers=workers, media=self._media)
        replicas = self._stack.enter_context(opened)
        built = spec.build()
        given, filled = built.input_controls(self._config), model_output_controls(built, self._config)
        return ModelPredictionSource(spec.model_version, replicas, self._batch_size or family.batch_size, given, filled)

    def open_file(self, path: str, version: str | None) -> PredictionSource:
        from lsml_cli.evaluation.evaluate import FilePredictionSource
        from lsml_cli.evaluation.prediction_file import PredictionFile

        file = self._stack.enter_context(PredictionFile(path, self._config, version))
        self._files.append(file)
        return FilePredictionSource(Path(path).name, file.lookup)

    @property
    def is_truncated(self) -> bool:
        return any(file.truncated for file in self._files)

    def require_versions(self) -> None:
        for file in self._files:
            file.require_version()

    def unreadable_notes(self) -> Iterator[str]:
        for file in self._files:
            yield from file.warnings()
