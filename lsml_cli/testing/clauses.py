"""The clauses of the contract for every model, each with its check."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lsml_cli.errors import LabelMismatch, LsmlError
from lsml_cli.inference.record_codec import BindingKey, TaskCodec
from lsml_cli.inference.replica_process import ReplicaConfig, ReplicaDied, ReplicaProcess
from lsml_cli.models.base import Binding, Model
from lsml_cli.schema.label_config import CONTROLS, OBJECTS, LabelConfig
from lsml_cli.schema.predictions import Failure, Prediction
from lsml_cli.schema.tasks import describe_json_type
from lsml_cli.testing.model_under_test import (
    Clause,
    ModelRaised,
    ModelUnderTest,
    ViolationFound,
    clause,
    describe_task,
    is_json,
)

MAX_SPEC_BYTES = 1 << 20  # of a pickled spec, which is sent to every replica
THREADS = 8
MIN_ENCODE_CALLS = 64  # calls of `encode` by all threads together

CLAUSES: list[Clause] = []


@clause(CLAUSES, "class", is_prerequisite=True)
def _class(subject: ModelUnderTest) -> Iterator[str]:
    """`parallelism`, `batch_size`, `devices`, `supported_controls` and `required_modules` have the right types."""
    model_class: Any = subject.model_class
    if model_class.parallelism not in ("process", "threads"):
        yield f'parallelism is {model_class.parallelism!r}; it has to be "process" or "threads"'
    if type(model_class.batch_size) is not int or model_class.batch_size < 1:
        yield f"batch_size is {model_class.batch_size!r}; it has to be a whole number from 1"
    for name, example in (("devices", ("cpu",)), ("required_modules", ("torch",))):
        value = getattr(model_class, name)
        if not _is_sequence_of_names(value) or (name == "devices" and not value):
            yield f"{name} is {value!r}; it has to be a tuple of names, such as {example!r}"
    controls = model_class.supported_controls
    if not isinstance(controls, Mapping) or not all(map(_is_sequence_of_names, controls.values())):
        yield f'supported_controls is {controls!r}; it has to map control tags to object tags: {{"Choices": ("Text",)}}'
        return
    objects = {tag for tags in controls.values() for tag in tags}
    for known, tag_kind, tags in ((CONTROLS, "control", set(controls)), (OBJECTS, "object", objects)):
        for tag in sorted(tags):
            if tag.lower() not in known:
                yield f"supported_controls names <{tag}>, which is not the tag of a Label Studio {tag_kind}"


def _is_sequence_of_names(value: Any) -> bool:
    return isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)


@clause(CLAUSES, "spec", is_prerequisite=True)
def _spec(subject: ModelUnderTest) -> Iterator[str]:
    """The spec is small, and the same after pickling."""
    pickled = pickle.dumps(subject.spec)
    if len(pickled) > MAX_SPEC_BYTES:
        yield f"the pickled spec has {len(pickled):,} bytes; large data belongs into files that fit writes"
    if pickle.loads(pickled) != subject.spec:
        yield "the spec is different after pickling; its parameters and its state have to be plain JSON"


@clause(CLAUSES, "params", is_prerequisite=True)
def _params(subject: ModelUnderTest) -> Iterator[str]:
    """Every parameter has a name and a default that is JSON and that its own declaration allows."""
    params: Any = subject.model_class.params
    if params is None:
        return
    if not isinstance(params, Mapping):
        yield f"params is {describe_json_type(params)}; it has to map each name to its default"
        return
    declared: Any = subject.model_class.declared_params()
    for name, parameter in declared.items():
        if not isinstance(name, str):
            yield f"params has the name {name!r}; it has to be text"
        elif (problem := _declaration_problem(name, parameter)) is not None:
            yield problem


def _declaration_problem(name: str, parameter: Any) -> str | None:
    """Describe what is wrong with a `Parameter`, None if nothing is."""
    for label, value in (("the default", parameter.default), *(("a choice", choice) for choice in parameter.choices)):
        if not is_json(value):
            return f"{label} of {name} is {value!r}, which is not JSON, so --with and specs cannot carry it"
    if not isinstance(parameter.help, str):
        return f"the help of {name} is {describe_json_type(parameter.help)}; it has to be text"
    if parameter.has_range and parameter.value_kind not in ("int", "float"):
        return f"{name} has a range, which is for numbers, and its kind is {parameter.value_kind!r}"
    if not parameter.accepts(parameter.default):
        return f"the default of {name} is {parameter.default!r}; it has to be {parameter.describe()}"
    return None


@clause(CLAUSES, "build", is_prerequisite=True)
def _build(subject: ModelUnderTest) -> Iterator[str]:
    """The model can be built from its spec."""
    subject.spec.build()
    yield from ()


@clause(CLAUSES, "bind", is_prerequisite=True)
def _bind(subject: ModelUnderTest) -> Iterator[str]:
    """`bind` returns a Binding of the label config, before and without `load`."""
    try:
        binding: Any = subject.spec.build().bind(subject.config, {}, None)
    except LabelMismatch as mismatch:
        yield f"bind refuses the label config that it is checked with: {str(mismatch).removesuffix('.')}"
        return
    except (Exception, SystemExit) as error:
        raise ModelRaised("before load, ", error) from error
    if not isinstance(binding, Binding):
        yield f"bind returned {describe_json_type(binding)}; it has to return a Binding"
    elif binding.config != subject.config:
        yield "the binding's config is not the label config that bind was given"


@clause(CLAUSES, "mismatch")
def _mismatch(subject: ModelUnderTest) -> Iterator[str]:
    """`bind` raises LabelMismatch, and nothing else, for a label config that the model cannot fill."""
    config = _unsupported_config(subject.model_class)
    controls = ", ".join(map(str, config.controls.values())) or "no control at all"
    try:
        subject.spec.build().bind(config, {}, None)
    except LabelMismatch:
        return
    except (Exception, SystemExit) as error:
        raise ModelRaised(f"for a label config with {controls}, instead of LabelMismatch ", error) from error
    if subject.model_class.supported_controls:
        yield f"bind takes a label config with {controls}, which the class does not fill; it has to raise LabelMismatch"


def _unsupported_config(model_class: type[Model]) -> LabelConfig:
    """Make a label config with controls that the class does not declare; without any if it declares none."""
    supported = {tag.lower() for tag in model_class.supported_controls}
    candidates = {
        "Rating": '<Rating name="rating" toName="text"/>',
        "Taxonomy": '<Taxonomy name="taxonomy" toName="text"><Choice value="a"/></Taxonomy>',
        "Number": '<Number name="number" toName="text"/>',
    }
    controls = "".join(xml for tag, xml in candidates.items() if supported and tag.lower() not in supported)
    return LabelConfig.parse(f'<View><Text name="text" value="$text"/>{controls}</View>')


@clause(CLAUSES, "load", is_prerequisite=True)
def _load(subject: ModelUnderTest) -> Iterator[str]:
    """`load` brings the weights into memory; a model that has to be trained first raises ModelError there."""
    is_trainable = subject.model_class.fit is not Model.fit
    try:
        subject.model = subject.spec.open(subject.device)
    except LsmlError:
        if is_trainable and subject.spec.path is None:
            subject.needs_training = True
            return
        raise
    subject.binding = subject.model.bind(subject.config, {}, None)
    yield from ()


@clause(CLAUSES, "encode", is_prerequisite=True)
def _encode(subject: ModelUnderTest) -> Iterator[str]:
    """`encode` takes every one of the tasks."""
    subject.inputs = []
    for position, original in enumerate(subject.tasks):
        task = subject.copy_task(position)
        try:
            subject.inputs.append(subject.encode(task))
        except ViolationFound:
            raise
        except (Exception, SystemExit) as error:
            raise ModelRaised(f"for {describe_task(original)} ", error) from error
        if task != original:
            subject.changes.append(f"encode changed {describe_task(original)}, which belongs to the caller")
    yield from ()


@clause(CLAUSES, "forward", is_prerequisite=True)
def _forward(subject: ModelUnderTest) -> Iterator[str]:
    """n inputs give n outputs."""
    inputs = list(subject.inputs)
    subject.outputs = subject.forward(inputs)
    if len(inputs) != len(subject.inputs) or any(a is not b for a, b in zip(inputs, subject.inputs, strict=True)):
        subject.changes.append("forward changed the list of inputs that it was given")
    if subject.model_class.encode is Model.encode and any(a != b for a, b in zip(inputs, subject.tasks, strict=False)):
        subject.changes.append("forward changed a task that it was given")
    yield from ()


@clause(CLAUSES, "decode", is_prerequisite=True)
def _decode(subject: ModelUnderTest) -> Iterator[str]:
    """`decode` makes a Prediction of every output."""
    subject.predictions = []
    for position, output in enumerate(subject.outputs):
        task = subject.copy_task(position)
        try:
            prediction: Any = subject.model.decode(output, task, subject.binding)
        except (Exception, SystemExit) as error:
            raise ModelRaised(f"for {describe_task(task)} ", error) from error
        if not isinstance(prediction, Prediction):
            returned = describe_json_type(prediction)
            yield f"decode returned {returned} for {describe_task(task)}; it has to return a Prediction"
            return
        if task != subject.tasks[position]:
            subject.changes.append(f"decode changed {describe_task(task)}, which belongs to the caller")
        subject.predictions.append(prediction)


@clause(CLAUSES, "version", is_prerequisite=True)
def _version(subject: ModelUnderTest) -> Iterator[str]:
    """`version` is a text, the same in every instance, and the `model_version` of predictions."""
    versions: list[Any] = [subject.model.version, subject.spec.build().version, subject.model.version]
    for version in versions:
        if not isinstance(version, str) or not version.strip():
            yield f"version is {version!r}; it has to be a text that is not empty"
            return
    if len(set(versions)) > 1:
        yield f"version changes: {' and '.join(map(repr, dict.fromkeys(versions)))}; runs could not be resumed"
        return
    if others := {prediction.model_version for prediction in subject.predictions} - {versions[0]}:
        other = sorted(map(str, others))[0]
        yield f"predictions carry {other!r} as model_version, and the model's version is {versions[0]!r}"


@clause(CLAUSES, "valid")
def _valid(subject: ModelUnderTest) -> Iterator[str]:
    """Label Studio accepts every prediction for the label config, and spans mark what their task holds."""
    for task, prediction in zip(subject.tasks, subject.predictions, strict=True):
        if (problem := subject.config.check(prediction, task.data)) is not None:
            yield f"the prediction for {describe_task(task)} would not be imported: {problem}"
            return


@clause(CLAUSES, "untouched")
def _untouched(subject: ModelUnderTest) -> Iterator[str]:
    """The model does not change tasks and inputs."""
    yield from dict.fromkeys(subject.changes)


@clause(CLAUSES, "empty")
def _empty(subject: ModelUnderTest) -> Iterator[str]:
    """`forward` of no inputs gives no outputs."""
    subject.forward([])
    yield from ()


@clause(CLAUSES, "again", is_prerequisite=True)
def _repeated_prediction(subject: ModelUnderTest) -> Iterator[str]:
    """The same tasks get the same predictions again, and from another instance."""
    yield from subject.compare("The second time", subject.positions, subject.predict(subject.positions))
    other = subject.spec.open(subject.device)
    predictions = subject.predict(subject.positions, other, other.bind(subject.config, {}, None))
    yield from subject.compare("From another instance", subject.positions, predictions)


@clause(CLAUSES, "batches")
def _batches(subject: ModelUnderTest) -> Iterator[str]:
    """A task gets the same prediction alone as in a batch."""
    yield from subject.compare(
        "In batches of one", subject.positions, [subject.predict([i])[0] for i in subject.positions]
    )


@clause(CLAUSES, "order")
def _order(subject: ModelUnderTest) -> Iterator[str]:
    """Outputs are in the order of the inputs, and independent of each other."""
    backwards = range(len(subject.tasks) - 1, -1, -1)
    yield from subject.compare("In a batch in reverse order", backwards, subject.predict(backwards))


@clause(CLAUSES, "threads")
def _threads(subject: ModelUnderTest) -> Iterator[str]:
    """`encode` can run in several threads at once."""
    if subject.model_class.encode is Model.encode:
        return
    batch_size = len(subject.tasks)
    positions = list(subject.positions) * -(-MIN_ENCODE_CALLS // batch_size)
    tasks = [subject.copy_task(position) for position in positions]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # seconds; makes a race likely that would otherwise occur once in a million tasks
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            inputs = list(pool.map(subject.encode, tasks))
    except (Exception, SystemExit) as error:
        raise ModelRaised(f"in {THREADS} threads at once, ", error) from error
    finally:
        sys.setswitchinterval(interval)
    predictions = []
    for first in range(0, len(inputs), batch_size):  # in the same batches as before, so that only threads differ
        outputs = subject.forward(inputs[first : first + batch_size])
        predictions += [
            subject.model.decode(output, task, subject.binding)
            for output, task in zip(outputs, tasks[first:], strict=False)
        ]
    yield from subject.compare(f"With {THREADS} threads that encode", positions, predictions)


@clause(CLAUSES, "process")
def _process(subject: ModelUnderTest) -> Iterator[str]:
    """In a process of its own the model gives the same predictions."""
    try:
        pickle.dumps(subject.predictions)
    except (Exception, SystemExit) as error:
        raise ViolationFound(f"a prediction cannot be pickled ({error}); its values have to be plain JSON") from error
    threads = 2 if subject.model_class.parallelism == "threads" else 0
    binding_key = BindingKey(subject.config)
    replica = ReplicaProcess(ReplicaConfig(subject.spec, binding_key, subject.device, threads, subject.media))
    try:
        replica.wait_until_ready()
        outcomes = [outcome for _, outcome in replica.submit(subject.tasks, None, TaskCodec()).result(subject.timeout)]
    except TimeoutError:
        raise ViolationFound(f"a process of its own has not answered within {subject.timeout:g} s") from None
    except ReplicaDied as death:
        raise ViolationFound(f"the model's process died: {death.cause}") from death
    except LsmlError as error:
        raise ViolationFound(f"a process of its own says: {str(error).removesuffix('.')}") from error
    finally:
        replica.close()
    for task, prediction, outcome in zip(subject.tasks, subject.predictions, outcomes, strict=True):
        if isinstance(outcome, Failure):
            if subject.config.check(prediction, task.data) is not None:
                return  # an invalid prediction, which the clause "valid" reports
            yield f"in a process of its own {describe_task(task)} fails in {outcome.stage}: {outcome.reason}"
            return
    yield from subject.compare("In a process of its own", subject.positions, outcomes)
