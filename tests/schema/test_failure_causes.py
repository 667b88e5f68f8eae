"""Failures are counted by cause, whatever a reason says about its task."""

from __future__ import annotations

import pytest

from lsml_cli.schema.failure_causes import MAX_CAUSES, MAX_SHOWN_CAUSES, FailureCauses, not_learned_lines


def count(*failures: tuple[str, str]) -> FailureCauses:
    causes = FailureCauses()
    for i, (stage, reason) in enumerate(failures, 1):
        causes.add(stage, reason, f"task {i}")
    return causes


@pytest.mark.parametrize(
    ("stage", "reason", "other"),
    [
        ("fetch", "images/a.png: no such file", "images/b.png: no such file"),
        ("fetch", "cat.jpg: no such file", "a dog.jpg: no such file"),
        ("fetch", "https://a.org/x?y=1: a.org answers 404 Not Found", "http://a.org/z: a.org answers 404 Not Found"),
        ("forward", "CUDA out of memory: tried to allocate 2.5 GiB", "CUDA out of memory: tried to allocate 13 GiB"),
        ("encode", "task 17 has no text", "task 18 has no text"),
        ("decode", "IndexError: list index 12,000 out of range", "IndexError: list index 3 out of range"),
        ("encode", "cannot open 'C:\\data\\one.txt'", "cannot open 'D:\\two.txt'"),
        ("encode", "id 6f9619ff-8b86-d011-b42d-00cf4fc964ff is unknown", "id 0f9619ff-8b86-d011-b42d-0 is unknown"),
    ],
)
def test_ids_paths_and_numbers_do_not_make_another_cause(stage: str, reason: str, other: str) -> None:
    [cause] = count((stage, reason), (stage, other)).most_common()
    assert (cause.count, cause.reason, cause.example) == (2, reason, "task 1")


@pytest.mark.parametrize(
    ("failure", "other"),
    [
        (("fetch", "a.png: no such file"), ("fetch", "a.png: permission denied")),
        (("fetch", "a.png: x.org answers 404 Not Found"), ("fetch", "a.png: x.org answers 503 Not Found")),
        (("encode", "boom"), ("forward", "boom")),
        (("encode", '"text" is missing'), ("encode", '"url" is missing')),
    ],
)
def test_causes_that_need_different_repairs_stay_apart(failure: tuple[str, str], other: tuple[str, str]) -> None:
    assert len(count(failure, other)) == 2


def test_quoted_words_are_data_where_they_always_differ() -> None:
    words = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "alpha", "theta")
    causes = count(*(("encode", f"could not convert string to float: {word!r}") for word in words))
    [cause] = causes.most_common()
    assert (cause.count, cause.example) == (9, "task 1")
    assert list(causes.lines()) == [
        "9 tasks failed (encode), such as task 1: could not convert string to float: 'alpha'."
    ]


def test_lines_name_the_most_frequent_causes_and_count_the_others() -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    causes = count(*(("encode", f"{word} is wrong.") for i, word in enumerate(words) for _ in range(i + 1)))
    lines = list(causes.lines())
    assert lines[0] == "11 tasks failed (encode), such as task 56: eleven is wrong."
    assert lines[-2:] == [
        "2 tasks failed (encode), such as task 2: two is wrong.",
        "And 1 more cause, of 1 task.",
    ]
    assert list(count(("", "odd")).lines(noun="held-out task", note="counted as wrong")) == [
        "1 held-out task failed (counted as wrong): task 1: odd."
    ]
    assert count(("fetch", "x/1: gone"), ("fetch", "x/2: gone"), ("read", "odd")).by_reason() == {
        "x/1: gone": 2,
        "odd": 1,
    }


def test_memory_is_bounded_and_every_failure_counted() -> None:
    letters = "abcdefghijklmnop"
    reasons = [f"x{a}{b}{c} happened" for a in letters for b in letters for c in letters]
    causes = count(*(("forward", reason) for reason in reasons))
    assert (causes.total, len(causes)) == (len(reasons), MAX_CAUSES)
    assert causes.uncounted == len(reasons) - MAX_CAUSES
    assert list(causes.lines())[-1] == f"And other causes, of {len(reasons) - MAX_SHOWN_CAUSES:,} tasks."
    assert causes.by_reason()["other reasons"] == causes.uncounted


def test_what_is_not_learned_from_is_told_by_cause() -> None:
    causes = count(*(("fetch", f"images/{i}.png: no such file") for i in range(46)), ("fetch", "no image"))
    assert list(not_learned_lines(causes, "image")) == [
        "Not learned from 46 images, such as task 1: images/0.png: no such file.",
        "Not learned from task 47: no image.",
    ]


def test_hostile_reasons_are_compared_in_time() -> None:
    bodies = ("a", "'", '"a', "a.", "/", "1 ", "HTTP ")
    causes = count(*(("forward", body * 100_000) for body in bodies for _ in range(50)))
    assert causes.total == 50 * len(bodies)
