"""`lsml evaluate`: measure a model or a file of predictions against annotations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lsml_cli.commands import completion, options
from lsml_cli.commands.media_options import MediaOptions
from lsml_cli.io.formats.registry import READABLE

if TYPE_CHECKING:
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.evaluation.gates import ComparisonResult, GateResult
    from lsml_cli.evaluation.prediction_sources import PredictionSource
    from lsml_cli.evaluation.results import Evaluation
    from lsml_cli.evaluation.training_data import TrainingDataPolicy
    from lsml_cli.io.task_reader import TaskStream
    from lsml_cli.media.fetcher import Media
    from lsml_cli.models.spec import ModelSpec
    from lsml_cli.schema.label_config import LabelConfig


def evaluate(
    annotated: Annotated[
        str, typer.Argument(metavar="ANNOTATED", help="A file of annotated tasks, - for stdin; or a data set.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            autocompletion=completion.complete_models,
            help="The model to measure, named as in lsml predict.",
        ),
    ] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(
            "--predictions",
            metavar="FILE",
            help="Measure this file instead, in either shape; tasks are found by id, else by their data.",
        ),
    ] = None,
    model_version: Annotated[
        str | None,
        typer.Option(
            "--model-version", metavar="TEXT", help="Which predictions of FILE; default: the last of each task."
        ),
    ] = None,
    label_config: options.LabelConfigFile = None,
    input_format: options.InputFormat = None,
    label_column: options.LabelColumn = None,
    annotation_policy: options.Annotation = "last",
    held_out: Annotated[
        bool,
        typer.Option("--held-out", help="Measure only on tasks that lsml fit held out from every model here."),
    ] = False,
    include_trained: Annotated[
        bool,
        typer.Option(
            "--include-trained", help="Measure also on tasks that a model was trained on; the numbers are too good."
        ),
    ] = False,
    predicted_by: options.PredictedBy = None,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            min=0.0,
            max=1.0,
            metavar="X",
            help="Lowest score of a region that counts for precision and recall (mAP uses all).",
        ),
    ] = 0.0,
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-under",
            metavar="METRIC=VALUE",
            help="Exit 4 below this: accuracy=0.98, f1:spam=0.9, label.map50=0.6 (above it for cer, wer); repeat.",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            metavar="MODEL|FILE",
            autocompletion=completion.complete_models,
            help="Another model or file of predictions to measure on the same tasks.",
        ),
    ] = None,
    fail_if_worse: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-if-worse",
            metavar="METRIC[=MARGIN]",
            help="Exit 4 when worse than --compare by more than MARGIN (default 0); repeat.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all numbers as JSON; - is stdout.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", help="Write the evaluation as one HTML page; - is stdout."),
    ] = None,
    examples: Annotated[
        int,
        typer.Option(
            "--examples",
            min=0,
            metavar="N",
            help="Tasks in the report, for each control, on which model and annotators disagree most.",
        ),
    ] = 12,
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of the bootstrap.")] = 0,
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

    Tasks that a model was trained on are left out, unless --include-trained is given.
    Choices: accuracy, F1, calibration; regions of images: mAP, precision, recall; texts: CER, WER, detection.
    Intervals of 95 % are from a bootstrap over tasks. Numbers go to stdout, everything else to stderr.
    Exit code 0: fine; 3: done, but some tasks could not be read, or failed (they count as wrong); 4: a gate was missed,
    or it is worse than what it was compared with; 1: failed; 2: wrong usage.

    Examples:

        lsml evaluate export.json --model models/news
            --fail-under macro-f1=0.9 --report report.html

        lsml evaluate export.json --model models/new
            --compare models/news --fail-if-worse accuracy=0.01
    """
    _evaluate(
        EvaluateArguments(
            annotated=annotated,
            model=model,
            predictions=predictions,
            model_version=model_version,
            label_config=label_config,
            input_format=input_format,
            label_column=label_column,
            annotation_policy=annotation_policy,
            held_out=held_out,
            include_trained=include_trained,
            predicted_by=predicted_by,
            threshold=threshold,
            fail_under=tuple(fail_under or ()),
            compare=compare,
            fail_if_worse=tuple(fail_if_worse or ()),
            json_file=json_file,
            report=report,
            max_examples=examples,
            seed=seed,
            model_params=tuple(model_params or ()),
            device=device,
            batch_size=batch_size,
            media=MediaOptions(
                document_root, upload_root, label_studio_url, tuple(maps or ()), media_cache, media_cache_size
            ),
            quiet=quiet,
        )
    )


@dataclass(frozen=True)
class EvaluateArguments:
    """What `lsml evaluate` was called with; each field is the option of that name."""

    annotated: str
    model: str | None
    predictions: Path | None
    model_version: str | None
    label_config: Path | None
    input_format: str | None
    label_column: str | None
    annotation_policy: Literal["first", "last", "all"]
    held_out: bool
    include_trained: bool
    predicted_by: str | None
    threshold: float
    fail_under: tuple[str, ...]
    compare: str | None
    fail_if_worse: tuple[str, ...]
    json_file: Path | None
    report: Path | None
    max_examples: int
    seed: int
    model_params: tuple[str, ...]
    device: str
    batch_size: int | None
    media: MediaOptions
    quiet: bool

    @property
    def training_data_policy(self) -> TrainingDataPolicy:
        if self.held_out:
            return "held out only"
        return "include" if self.include_trained else "leave out"

    @property
    def compares_with_file(self) -> bool:
        """Tell whether --compare names a file of predictions, not a model."""
        return self.compare is not None and not self.compare.endswith(".py") and Path(self.compare).is_file()


def _evaluate(arguments: EvaluateArguments) -> None:
    from lsml_cli.commands.console import evaluate_report
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.commands.console.progress import Console
    from lsml_cli.evaluation import gates
    from lsml_cli.evaluation.evaluate import measurable_controls
    from lsml_cli.evaluation.report import page
    from lsml_cli.inference.plan import media_root
    from lsml_cli.io import task_reader
    from lsml_cli.io.output_paths import is_stdout
    from lsml_cli.io.task_source import open_annotated_dataset

    _check_usage(arguments)
    specs = _ModelSpecs(arguments)
    options.require_format("--from", arguments.input_format, READABLE)
    options.require_table(arguments.input_format, arguments.label_column)
    config = specs.find_label_config(arguments.label_config)
    columns = options.collect_columns(arguments.label_column)
    dataset = open_annotated_dataset(arguments.annotated, arguments.input_format, config, columns)
    config = dataset.label_config if dataset else _require_label_config(config)
    known = measurable_controls(config)
    wanted = gates.parse_gates(list(arguments.fail_under), *known)
    not_worse = gates.parse_comparisons(list(arguments.fail_if_worse), *known)
    _check_files(arguments)
    media = arguments.media.build(media_root(arguments.annotated))
    media = dataset.locate_media(media) if dataset else media
    tasks = task_reader.read_tasks(dataset or arguments.annotated, controls=frozenset(config.controls))
    with Console(arguments.quiet) as console:
        for warning in (*config.warnings, *(dataset.notes if dataset else ())):
            console.note(warning)
        evaluation, is_truncated = _measure(arguments, specs, config, tasks, media, console)
        if not evaluation.tasks:
            raise evaluate_report.no_tasks_error(evaluation)
        gate_results = gates.evaluate_gates(wanted, evaluation.metrics, "annotated task")
        comparisons = evaluation.compare_gates(not_worse)
        summary_file.write_summary(
            arguments.json_file,
            evaluation.to_json()
            | {
                "gates": [result.to_json() for result in gate_results],
                "not_worse": [result.to_json() for result in comparisons],
            },
        )
        all_results: list[GateResult | ComparisonResult] = [*gate_results, *comparisons]
        if arguments.report is not None:
            info = page.ReportInfo(
                annotations_name=Path(arguments.annotated).name, label_studio_url=arguments.media.label_studio_url
            )
            page.write(arguments.report, evaluation, all_results, config, media, info)
        if is_stdout(arguments.json_file) or is_stdout(arguments.report):  # instead of the tables
            for warning in evaluation.warnings:
                console.note(warning)
        else:
            evaluate_report.print_evaluation(evaluation)
        for line in evaluate_report.summary_lines(evaluation, all_results):
            console.note(line)
        for line in evaluation.unreadable.lines(arguments.annotated):
            console.note(line, important=True)
        if arguments.report is not None and not is_stdout(arguments.report):
            console.note(f"Wrote {arguments.report}.")
    evaluate_report.require_gates_passed(evaluation, all_results)
    evaluate_report.require_measured(evaluation)
    if evaluation.failed or evaluation.left_out.get("unreadable") or is_truncated:
        raise typer.Exit(3)


def _check_usage(arguments: EvaluateArguments) -> None:
    """Raise UsageError for options that do not go together."""
    from lsml_cli.errors import UsageError

    if arguments.model is not None and arguments.predictions is not None:
        raise UsageError("What should be measured?", "Name either --model MODEL or --predictions FILE.")
    if arguments.model is None and arguments.predictions is None:
        raise UsageError("What should be measured?", f"{completion.name_models_hint()} Or name --predictions FILE.")
    if arguments.fail_if_worse and arguments.compare is None:
        raise UsageError("--fail-if-worse needs something to compare with.", "Name it: --compare MODEL")
    if arguments.model_version is not None and arguments.predictions is None:
        raise UsageError(
            "--model-version chooses among the predictions of a file.", "Leave it out, or name --predictions FILE."
        )
    if arguments.predicted_by is not None and arguments.predictions is None:
        raise UsageError("--predicted-by tells where the predictions of a file come from.", "Leave it out.")
    if arguments.held_out and arguments.include_trained:
        raise UsageError("--held-out and --include-trained exclude each other.", "Leave out one of them.")
    compares_with_model = arguments.compare is not None and not arguments.compares_with_file
    if arguments.held_out and not (arguments.model or arguments.predicted_by or compares_with_model):
        raise UsageError(
            "--held-out needs a model, whose hold-out it means.", "Name one with --model, --predicted-by or --compare."
        )


def _check_files(arguments: EvaluateArguments) -> None:
    """Raise UsageError for a file that cannot be written, or that would overwrite an input."""
    from lsml_cli.commands.console import summary as summary_file
    from lsml_cli.evaluation.report import page
    from lsml_cli.io.output_paths import require_different_files, require_one_stdout

    require_one_stdout({"--json": arguments.json_file, "--report": arguments.report})
    summary_file.require_writable(arguments.json_file, "--json")
    page.require_writable(arguments.report)
    require_different_files(
        {
            "the annotated tasks": arguments.annotated,
            "the predictions": str(arguments.predictions) if arguments.predictions else None,
            "the file to compare with": arguments.compare if arguments.compares_with_file else None,
            "the label config": str(arguments.label_config) if arguments.label_config else None,
        },
        {
            "--json": str(arguments.json_file) if arguments.json_file else None,
            "--report": str(arguments.report) if arguments.report else None,
        },
    )


def _measure(
    arguments: EvaluateArguments,
    specs: _ModelSpecs,
    config: LabelConfig,
    tasks: TaskStream,
    media: Media,
    console: Console,
) -> tuple[Evaluation, bool]:
    """Return the evaluation, and whether a file of predictions ended too early."""
    from lsml_cli.evaluation.evaluate import evaluate as evaluate_predictions
    from lsml_cli.evaluation.training_data import build_filter
    from lsml_cli.io.reserved_stdout import reserve_stdout
    from lsml_cli.schema.failure_causes import FailureNotes

    training_data = build_filter(specs.named, arguments.training_data_policy, media)
    with reserve_stdout(), ExitStack() as stack:
        opener = _SourceOpener(stack, config, media, arguments.device, arguments.batch_size, console.note)
        if specs.model:
            console.start_phase("loading model")
        source = (
            opener.open_model(specs.model)
            if specs.model
            else opener.open_file(str(arguments.predictions), arguments.model_version)
        )
        if specs.compared:
            console.start_phase("loading the model to compare with")
        baseline = opener.open_model(specs.compared) if specs.compared else None
        if arguments.compare and arguments.compares_with_file:
            baseline = opener.open_file(arguments.compare, None)
        evaluation = evaluate_predictions(
            tasks,
            config,
            source,
            baseline,
            annotation_policy=arguments.annotation_policy,
            threshold=arguments.threshold,
            max_examples=arguments.max_examples,
            seed=arguments.seed,
            training_data=training_data,
            reporter=console,
            share_read=lambda: tasks.share,
            failure_notes=FailureNotes(console.note, console.warn, "The run goes on; ctrl-C stops it."),
        )
        console.end_progress()
        opener.require_versions()
        given = [spec.model_version for spec in specs.named]
        use = evaluation.training_data.add_unnamed(opener.trained_versions(), given)
        evaluation = replace(evaluation, training_data=use)
        for line in opener.unreadable_notes():
            console.note(line, important=True)
        return evaluation, opener.is_truncated


class _ModelSpecs:
    """The models named by --model and --compare, and their label config."""

    def __init__(self, arguments: EvaluateArguments) -> None:
        from lsml_cli.registry import resolve

        self.model: ModelSpec | None = None
        self.compared: ModelSpec | None = None
        if arguments.model is not None:
            self.model = resolve.find_model(arguments.model, resolve.parse_params(list(arguments.model_params)))
        if arguments.compare is not None and not arguments.compares_with_file:
            self.compared = resolve.find_model(arguments.compare)
        self.predicted_by = resolve.find_model(arguments.predicted_by) if arguments.predicted_by is not None else None
        self._specs_by_name = (
            (self.model, arguments.model),
            (self.predicted_by, arguments.predicted_by),
            (self.compared, arguments.compare),
        )

    @property
    def named(self) -> list[ModelSpec]:
        """The models whose predictions are measured."""
        return [spec for spec in (self.model, self.predicted_by, self.compared) if spec is not None]

    def find_label_config(self, path: Path | None) -> LabelConfig | None:
        """Load the label config at `path`, or the first that a named model has; return None if there is none."""
        from lsml_cli.registry import resolve
        from lsml_cli.schema.label_config import LabelConfig

        if path is not None:
            return LabelConfig.load(path)
        for spec, name in self._specs_by_name:
            if spec is not None and (config := resolve.find_label_config(spec, name or "")) is not None:
                return config
        return None


def _require_label_config(config: LabelConfig | None) -> LabelConfig:
    from lsml_cli.errors import UsageError

    if config is None:
        raise UsageError("A label config is needed.", "Name the labelling XML with --label-config FILE.")
    return config


class _SourceOpener:
    """Open models and files of predictions to measure; they are closed with `stack`."""

    def __init__(
        self,
        stack: ExitStack,
        config: LabelConfig,
        media: Media,
        device: str,
        batch_size: int | None,
        note: Callable[[str], None],
    ) -> None:
        from lsml_cli.evaluation.prediction_file import PredictionFile

        self._stack = stack
        self._config = config
        self._media = media
        self._device = device
        self._batch_size = batch_size
        self._note = note
        self._files: list[PredictionFile] = []

    def open_model(self, spec: ModelSpec) -> PredictionSource:
        import os

        from lsml_cli.evaluation.prediction_sources import ModelPredictionSource
        from lsml_cli.inference.placement import find_devices, open_replicas

        model_class = spec.model_class()
        [device, *_] = find_devices(self._device, model_class)
        workers = (os.cpu_count() or 1) if model_class.parallelism == "threads" else 1
        built = spec.build()
        binding = built.bind(self._config, {}, None)  # before weights are loaded or fetched: it may not fit
        opened = open_replicas(spec, self._config, devices=[device], workers=workers, media=self._media)
        replicas = self._stack.enter_context(opened)
        for note in binding.notes:
            self._note(f"{spec.model_version}: {note}")
        return ModelPredictionSource(
            spec.model_version,
            replicas,
            self._batch_size or model_class.batch_size,
            built.input_controls(self._config),
            binding.output_controls if built.supported_controls else None,
        )

    def open_file(self, path: str, version: str | None) -> PredictionSource:
        from lsml_cli.evaluation.prediction_file import PredictionFile
        from lsml_cli.evaluation.prediction_sources import FilePredictionSource

        file = self._stack.enter_context(PredictionFile(path, self._config, version))
        self._files.append(file)
        return FilePredictionSource(Path(path).name, file.lookup)

    @property
    def is_truncated(self) -> bool:
        return any(file.truncated for file in self._files)

    def trained_versions(self) -> list[str]:
        """Return the trained versions that made the predictions of the files."""
        return [name for file in self._files for name in file.trained_versions()]

    def require_versions(self) -> None:
        for file in self._files:
            file.require_version()

    def unreadable_notes(self) -> Iterator[str]:
        for file in self._files:
            yield from file.warnings()
