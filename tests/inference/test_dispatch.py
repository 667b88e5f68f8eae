"""Every kind of model through one or several replicas: order, isolation, placement, recovery."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lsml_cli.errors import LsmlError, ModelError, UsageError
from lsml_cli.inference.dispatch import predict_stream
from lsml_cli.inference.in_flight_batch import InFlightBatch
from lsml_cli.inference.placement import find_devices, open_replicas
from lsml_cli.inference.record_codec import BindingKey, TaskCodec
from lsml_cli.inference.replica import PREFETCH_BATCHES, Replica
from lsml_cli.inference.replica_process import ReplicaConfig, ReplicaProcess
from lsml_cli.media.fetcher import Media
from lsml_cli.models.spec import ModelSpec
from lsml_cli.registry.resolve import find_model
from lsml_cli.schema.label_config import LabelConfig
from lsml_cli.schema.predictions import Failure, Prediction
from lsml_cli.schema.tasks import Task, UnreadableRecord
from tests.helpers import models, server_models
from tests.helpers.predict_runs import MISBEHAVING_MODELS, MODELS
from tests.helpers.serve_process import wait_until

SERVED = Path(server_models.__file__)
TEXT = LabelConfig.parse(models.TEXT_CONFIG)


def spec(name: str, **params: Any) -> ModelSpec:
    return find_model(f"{MODELS}:{name}", params)


def text_tasks(n: int, **do: str) -> list[Task]:
    """Return n tasks with ids from 100; `i3="die"` tells the model what to do at the task with index 3."""
    data = [{"text": "word " * (index % 9), "do": do.get(f"i{index}")} for index in range(n)]
    return [Task(index, index + 100, item, {"id": index + 100, "data": item}) for index, item in enumerate(data)]


def run(
    model: ModelSpec, tasks: list[Task], config: LabelConfig = TEXT, batch_size: int = 4, **placement: Any
) -> list[Any]:
    with open_replicas(model, config, **placement) as replicas:
        results = list(predict_stream(replicas, tasks, batch_size=batch_size))
    assert [task.id for task, _ in results] == [task.id for task in tasks]
    return [outcome for _, outcome in results]


def labels(outcomes: list[Any]) -> list[str]:
    return [outcome.result[0].value["choices"][0] for outcome in outcomes]


@pytest.mark.parametrize("placement", [{}, {"workers": 2}, {"devices": ["cpu", "cpu"]}, {"workers": 3}])
def test_process_model_on_one_or_several_processes(placement):
    outcomes = run(spec("Words"), text_tasks(41), **placement)
    assert labels(outcomes) == ["long" if n % 9 > 5 else "short" for n in range(41)]


@pytest.fixture
def images(tmp_path: Path) -> list[Task]:
    for level in range(30):
        (tmp_path / f"{level}.pgm").write_bytes(b"P5\n4 4\n255\n" + bytes([level * 8]) * 16)
    return [Task(n, n, {"image": f"{n}.pgm"}, {}) for n in range(30)]


@pytest.mark.parametrize("devices", [["cpu"], ["cpu", "cpu"]])
@pytest.mark.parametrize("workers", [1, 3])
def test_threaded_model_encodes_ahead_of_forward(tmp_path, images, devices, workers):
    config = LabelConfig.parse(models.IMAGE_CONFIG)
    outcomes = run(spec("Brightness"), images, config, devices=devices, workers=workers, media=Media(tmp_path))
    assert labels(outcomes) == ["bright" if n * 8 > 127.5 else "dark" for n in range(30)]


def test_encode_runs_in_threads_and_forward_in_one(tmp_path, images):
    config = LabelConfig.parse(models.IMAGE_CONFIG)
    with open_replicas(spec("Brightness"), config, workers=3, media=Media(tmp_path)) as [replica]:
        assert isinstance(replica, Replica)
        list(predict_stream([replica], images, batch_size=4))
        model: Any = replica.model
    assert len(model.encoding_threads) == 3
    assert len(model.forward_threads) == 1
    assert not model.forward_threads & model.encoding_threads


def test_bad_image_fails_one_task(tmp_path, images):
    (tmp_path / "7.pgm").write_bytes(b"P5\n4 4\n255\nshort")
    (tmp_path / "8.pgm").unlink()
    images[9].data["image"] = "../outside.pgm"
    images[10].data["image"] = "https://example.com/a.pgm"
    config = LabelConfig.parse(models.IMAGE_CONFIG)
    outcomes = run(spec("Brightness"), images, config, workers=2, media=Media(tmp_path))
    stages = {n: outcome.stage for n, outcome in enumerate(outcomes) if isinstance(outcome, Failure)}
    assert stages == {7: "encode", 8: "fetch", 9: "fetch", 10: "fetch"}
    assert outcomes[8].reason == f"{tmp_path / '8.pgm'}: No such file or directory"


@pytest.mark.parametrize("placement", [{}, {"workers": 2}])
def test_two_stage_model_keeps_crops_with_their_images(placement):
    config = LabelConfig.parse(models.OCR_CONFIG)
    texts = ["one 22 three", "", "4", "a 1 b 2 c 3", "word"] * 3
    outcomes = run(
        spec("TwoStage"), [Task(n, n, {"image": text}, {}) for n, text in enumerate(texts)], config, **placement
    )
    crop_labels = [[region.value["rectanglelabels"][0] for region in outcome.result] for outcome in outcomes]
    assert crop_labels == [["number" if word.isdigit() else "word" for word in text.split()] for text in texts]
    assert outcomes[1].score is None  # no region is a prediction, not a failure


def test_script_model_gets_whole_batches_and_keeps_state():
    with open_replicas(spec("Script"), TEXT) as [replica]:
        outcomes = [outcome for _, outcome in predict_stream([replica], text_tasks(10), batch_size=4)]
        assert labels(outcomes) == ["short"] * 10
        assert isinstance(replica, Replica)
        binding: Any = replica.get_binding(BindingKey(TEXT))
        assert binding.calls == [4, 4, 2]


def test_single_task_is_batch_of_one():
    with open_replicas(spec("Words"), TEXT) as [replica]:
        assert isinstance(replica, Replica)
        tasks = text_tasks(12)
        assert [replica.predict([task])[0] for task in tasks] == replica.predict(tasks)
        assert replica.predict([]) == []


@pytest.mark.parametrize("placement", [{}, {"workers": 2}])
def test_each_failing_stage_fails_one_task(placement):
    actions = {
        "i2": "raise in encode",
        "i5": "raise in forward",
        "i9": "lose one",
        "i10": "raise in decode",
        "i13": "unknown label",
        "i14": "return a dict",
        "i15": "nothing",
    }
    outcomes = run(spec("Fragile"), text_tasks(20, **actions), **placement)
    failures = {n: (o.stage, o.reason) for n, o in enumerate(outcomes) if isinstance(o, Failure)}
    assert failures[2] == ("encode", "this one cannot be encoded")
    assert failures[5] == ("forward", "RuntimeError: out of luck")
    assert failures[9] == ("forward", "the model returned 0 outputs for 1 inputs")
    assert failures[10] == ("decode", "KeyError: 'label'")
    assert failures[13][0] == "check"
    assert "huge" in failures[13][1]
    assert failures[14] == ("decode", "the model's decode returned an object, expected a Prediction")
    assert sorted(failures) == [2, 5, 9, 10, 13, 14]
    assert outcomes[15] == Prediction((), None, outcomes[15].model_version)


def test_killed_process_fails_only_suspect_task():
    outcomes = run(spec("Fragile"), text_tasks(30, i6="die", i21="die"), workers=2)
    failures = {n: outcome.reason for n, outcome in enumerate(outcomes) if isinstance(outcome, Failure)}
    assert failures == {n: "the model's process died: killed by SIGKILL" for n in (6, 21)}


def test_concurrent_recoveries_do_not_affect_each_other():
    """As in `lsml serve`, where each batch has its own waiting thread."""
    batches = [text_tasks(12), text_tasks(12, i5="die", i9="die"), text_tasks(12, i0="die")]
    with ExitStack() as stack:
        replica = ReplicaProcess(ReplicaConfig(spec("Fragile", pause=0.01), BindingKey(TEXT, {}, None, None), "cpu"))
        stack.callback(replica.close)
        replica.wait_until_ready()
        waiting = stack.enter_context(ThreadPoolExecutor(3))
        sent = [InFlightBatch(replica, batch, None, TaskCodec()) for batch in batches]
        results = list(waiting.map(InFlightBatch.collect, sent))
    lost = [[n for n, (_, outcome) in enumerate(batch) if isinstance(outcome, Failure)] for batch in results]
    assert lost == [[], [5, 9], [0]]


@contextmanager
def open_patient_replica() -> Iterator[ReplicaProcess]:
    """Open a process whose model takes as long as each task says."""
    replica = ReplicaProcess(ReplicaConfig(find_model(f"{SERVED}:Patient"), BindingKey(TEXT, {}, None, None), "cpu"))
    try:
        replica.wait_until_ready()
        yield replica
    finally:
        replica.close()


def hanging_task(seconds: float = 1000) -> Task:
    return Task(0, 0, {"text": "hello", "seconds": seconds}, {})


def failure_reasons(results: list[Any]) -> list[str | None]:
    return [outcome.reason if isinstance(outcome, Failure) else None for _, outcome in results]


def test_batch_behind_stuck_one_is_resubmitted_with_timeout():
    with open_patient_replica() as replica:
        batches = [hanging_task(), hanging_task()], [hanging_task()], [hanging_task(0)]
        first, second, third = (InFlightBatch(replica, batch, None, TaskCodec()) for batch in batches)
        assert not replica.kill_if_stuck(second.results), "it only waits behind the first"
        assert replica.kill_if_stuck(first.results)
        assert not replica.kill_if_stuck(first.results), "its process was killed already"
        assert failure_reasons(second.collect(0.3)) == ["the model was stuck for 0 s, and was started again"]
        assert failure_reasons(third.collect(10)) == [None]


def test_suspect_batch_fails_hanging_items_and_gives_up_after_three():
    mixed = [hanging_task(0), hanging_task(), hanging_task(0), hanging_task(), hanging_task(), hanging_task(0)]
    with open_patient_replica() as replica:
        sent = InFlightBatch(replica, mixed, None, TaskCodec())
        assert replica.kill_if_stuck(sent.results)
        assert [reason is None for reason in failure_reasons(sent.collect(0.3))] == [
            True,
            False,
            True,
            False,
            False,
            True,
        ]
        sent = InFlightBatch(replica, [hanging_task()] * 9, None, TaskCodec())
        assert replica.kill_if_stuck(sent.results)
        with pytest.raises(ModelError, match="in vain: the model was stuck for 0 s"):
            sent.collect(0.3)


def test_closed_replica_fails_waiting_batches_and_stays_closed():
    with open_patient_replica() as replica, ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(InFlightBatch(replica, [hanging_task()], None, TaskCodec()).collect) for _ in range(2)]
        replica.close()
        for collected in waiting:
            with pytest.raises(ModelError, match="was unloaded"):
                collected.result(30)


def test_killed_process_is_detected_despite_open_pipe(tmp_path):
    """A process that the model has started may keep the pipe open long after the worker has gone."""
    with open_patient_replica() as replica:
        pid = tmp_path / "pid"
        orphan_batch = InFlightBatch(
            replica, [Task(0, 0, {"text": "", "child": str(pid), "seconds": 1000}, {})], None, TaskCodec()
        )
        wait_until("it has started another process", lambda: pid.exists() and pid.read_text())
        try:
            assert replica.kill_if_stuck(orphan_batch.results)
            assert failure_reasons(InFlightBatch(replica, [hanging_task(0)], None, TaskCodec()).collect(10)) == [None]
        finally:
            os.kill(int(pid.read_text()), signal.SIGKILL)


def test_process_that_keeps_dying_ends_run():
    with pytest.raises(ModelError, match="dies again and again"):
        run(spec("Fragile"), text_tasks(12, i0="die", i1="die", i2="die"), workers=2)


def test_transient_failures_are_retried_and_marked(tmp_path):
    model = spec("Fragile", marker=str(tmp_path / "tried"))
    outcomes = run(model, text_tasks(6, i1="recover", i4="stay away"))
    assert isinstance(outcomes[1], Prediction)
    assert outcomes[4] == Failure("encode", "ConnectionError: nobody there", transient=True)


def test_outage_stops_retries_of_later_tasks():
    with open_replicas(spec("Fragile"), TEXT) as [replica]:
        assert isinstance(replica, Replica)
        delays: list[float] = []
        replica._retrier._cancelled = cast(Any, SimpleNamespace(wait=delays.append, set=lambda: None))
        tasks = text_tasks(40, **{f"i{n}": "stay away" for n in range(5, 35)})
        outcomes = replica.predict(tasks)
    assert [isinstance(o, Failure) and o.transient for o in outcomes] == [5 <= n < 35 for n in range(40)]
    assert len(delays) == 3 * len(replica.model.retry_delays)  # the first three wait, then the outage is known


@pytest.mark.parametrize("workers", [1, 2])
def test_load_error_is_reported(workers):
    with pytest.raises(
        ModelError, match="NeverLoads cannot be loaded: RuntimeError: the weights are in another castle"
    ):
        run(spec("NeverLoads"), text_tasks(3), workers=workers)


def test_process_death_while_loading_is_reported():
    with pytest.raises(ModelError, match="died while it loaded \\(exit code 7\\)"):
        run(spec("DiesLoading"), text_tasks(3), workers=2)


def test_only_a_few_batches_are_read_ahead():
    read_count = 0

    def many_tasks() -> Any:
        nonlocal read_count
        for task in text_tasks(2_000):
            read_count += 1
            yield task

    cases: list[tuple[dict[str, Any], int]] = [({"workers": 2}, 4 * (2 * PREFETCH_BATCHES + 1)), ({}, 4)]
    for placement, at_most in cases:
        read_count = 0
        with open_replicas(spec("Words"), TEXT, **placement) as replicas:
            next(predict_stream(replicas, many_tasks(), batch_size=4))
            assert read_count <= at_most


def test_find_devices_goes_by_model():
    model = spec("Words").model_class()
    assert find_devices("auto", model) == ["cpu"]
    assert find_devices("cpu, cpu", model) == ["cpu", "cpu"]
    with pytest.raises(UsageError, match="cannot run on 'cuda:0'"):
        find_devices("cuda:0", model)


# --- models that misbehave in ways that end processes, threads or pipes


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["Exits", "ExitsInEncode", "Unpicklable"])
def test_misbehaving_model_fails_one_task(name, workers):
    model = find_model(f"{MISBEHAVING_MODELS}:{name}")
    outcomes = run(model, text_tasks(8, i3="misbehave"), workers=workers)
    assert [isinstance(outcome, Failure) for outcome in outcomes] == [n == 3 for n in range(8)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("name", ["ExitsLoading", "RaisesItsOwnError"])
def test_exit_while_loading_is_reported(name, workers):
    with pytest.raises(LsmlError):
        run(find_model(f"{MISBEHAVING_MODELS}:{name}"), text_tasks(3), workers=workers)


def test_unpicklable_item_raises_at_caller():
    with open_replicas(spec("Words"), TEXT, workers=2) as replicas, pytest.raises((TypeError, AttributeError)):
        list(predict_stream(replicas, [Task(0, 0, {"text": lambda: 1}, {})], batch_size=1))


def test_threshold_applies_to_every_model():
    outcomes = run(spec("Words"), text_tasks(9), threshold=0.3)
    assert [len(outcome.result) for outcome in outcomes] == [1 / (1 + n % 9) >= 0.3 for n in range(9)]


def test_unreadable_record_becomes_failure_in_order():
    task, *_ = text_tasks(1)
    with open_replicas(spec("Words"), TEXT) as replicas:
        first, second = predict_stream(replicas, [UnreadableRecord(0, "line 1", "truncated"), task], batch_size=2)
    assert first[1] == Failure("read", "truncated")
    assert isinstance(second[1], Prediction)


def test_batch_ends_at_byte_limit():
    from lsml_cli.inference import dispatch

    sizes = [1, 1, 9 << 20, 1, 5 << 20, 5 << 20, 1]
    batches = list(dispatch._batches(sizes, 4, lambda size: size))
    assert batches == [sizes[:3], sizes[3:6], sizes[6:]]
