"""`lsml push` without the command line: predictions into a project, each once, whatever breaks in between.

A call of `import/predictions` recounts every task of the project, at about 1 ms each, so there are few of them, and
large. None is repeated because it seems to have failed: Label Studio finishes what it was sent, also for somebody who
is gone. What a call has done is looked up instead, and then only what is missing is sent.
"""

from __future__ import annotations

import time
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from typing import Any, Literal

from lsml_cli.errors import Interrupted, LsmlError, UsageError, closest_first, listed
from lsml_cli.io.source import Source
from lsml_cli.label_studio.client import Refused, Studio, Unclear
from lsml_cli.label_studio.create_tasks import Creation
from lsml_cli.label_studio.pending_import import Underway, wait_for
from lsml_cli.label_studio.push_options import Pushed, PushOptions
from lsml_cli.label_studio.push_spool import Item, Rejections, Report, Spool, gather
from lsml_cli.label_studio.task_pages import condition, ids_between, list_tasks
from lsml_cli.schema.label_config import LabelConfig

FEWEST = 10_000  # predictions of a call, if there are as many; more where the project has more tasks
LARGEST = 64 << 20  # bytes of a call; Label Studio takes 250 MiB, and needs ten times as much memory to parse them
SMALLEST = 1 << 16  # bytes of a call, however little a proxy lets through
SECONDS_EACH = (10.0, 0.006)  # a call is over after these, and these for each of its predictions and of all tasks
FRUITLESS = 3  # calls that broke off without anything arriving before it is given up


def push(studio: Studio, asked: PushOptions, report: Report) -> Pushed:
    """Send what is missing. Raises UsageError, LsmlError, Interrupted. Nothing is sent before all is checked."""
    with Source(asked.file) as source, Spool() as spool:
        rejections = Rejections(asked.errors, source.name, report)
        with closing(rejections):
            project = studio.project(asked.project)
            config = LabelConfig.parse(studio.label_config_of(project))
            gather(source, config, spool, rejections, asked.version, asked.create)
            version = _only_version(spool, asked)
            way = Creation if asked.create else Push
            return way(studio, asked, project, version, spool, rejections, report).run()


def _only_version(spool: Spool, asked: PushOptions) -> str | None:
    """The version of everything that may be sent, None where there is nothing.

    Raises UsageError where there are several, or none that was asked for.
    """
    if asked.version is not None and spool.named and asked.version not in spool.named:
        known = listed(f"{version} ({spool.named[version]:,})" for version in closest_first(asked.version, spool.named))
        raise UsageError(f"{asked.file} holds no prediction of {asked.version!r}.", f"It holds those of: {known}.")
    if asked.version is not None or len(spool.versions) <= 1:
        return asked.version or next(iter(spool.versions), None)
    known = listed(f"{version} ({count:,})" for version, count in spool.versions.most_common())
    raise UsageError(
        f"{asked.file} holds predictions of {len(spool.versions)} versions: {known}.",
        f"Push one at a time: --version {spool.versions.most_common(1)[0][0]}",
    )


class Push:
    """One push: what is sent still, and what is known to be there."""

    def __init__(
        self,
        studio: Studio,
        asked: PushOptions,
        project: Mapping[str, Any],
        version: str | None,
        spool: Spool,
        rejections: Rejections,
        report: Report,
    ) -> None:
        self.studio = studio
        self.asked = asked
        self.project = project
        self.version = version or ""
        self.spool = spool
        self.rejections = rejections
        self.report = report
        self.begun = time.monotonic()
        self.todo = bytearray(b"\1" * len(spool))  # by number: still to be sent
        self.taken = bytearray(len(spool))  # in a call that was answered
        self.size = int(project.get("task_number") or 0)
        self.most, self.largest = max(FEWEST, self.size), LARGEST
        self.counts: Counter[str] = Counter()
        self.sending = 0.0
        self.short = False  # whether a call has taken less than it was sent
        self.notes: list[str] = []
        self.underway = Underway(studio.url, asked.project, self.version)

    def run(self) -> Pushed:
        if not self.spool:
            return self.summary()
        self._require_tasks()
        if (call := self.underway.found()) is not None:
            self.report.note(
                f"Another push of {self.version} is under way or was interrupted: waiting until Label Studio is done"
                f" with what it was sent, {call.ends - time.time():,.0f} s at most."
            )
            wait_for(call, self._there)
            self.underway.end()
        there = self._there()
        holders = self._holders() if there else array("q")
        twice = there > len(holders)
        self._settle_existing(holders)
        if self.asked.dry_run:
            self.counts["sent"] = sum(self.todo)
            return self.summary()
        if self.asked.existing == "replace" and holders:
            there -= self._delete_older(holders, there)
        try:
            self._send_all()
        except KeyboardInterrupt:
            raise Interrupted(
                f"Interrupted after {self.counts['created']:,} of {self.counts['sent']:,} predictions.",
                "Label Studio may still work on the last call. Run the same again: it waits, and sends the rest.",
            ) from None
        if self.short:
            self._find_dropped()
        now = self._there()
        if twice or now > there + self.counts["created"]:
            self._remove_doubles()
        if now:
            self._show()
        return self.summary()

    def summary(self) -> Pushed:
        counts = self.spool.counts
        return Pushed(
            project=self.asked.project,
            version=self.version or None,
            records=counts["records"],
            sent=self.counts["sent"],
            created=self.counts["created"],
            existing=self.counts["existing"],
            replaced=self.counts["replaced"],
            failed=counts["failed"],
            empty=counts["empty"],
            other=counts["other"],
            rejected=self.rejections.count,
            doubles=self.counts["doubles"],
            calls=self.counts["calls"],
            sending_seconds=round(self.sending, 3),
            seconds=round(time.monotonic() - self.begun, 3),
            dry_run=self.asked.dry_run,
            errors=str(self.asked.errors) if self.asked.errors else None,
            notes=tuple(self.notes),
        )

    # --- before anything is sent

    def _require_tasks(self) -> None:
        """Reject what names a task that the project does not have, or one that was named before."""
        known = self._known()
        if not known:
            self.notes.append(
                "None of these tasks is in the project. For a new one, --create-tasks imports whole tasks with their"
                " predictions, which is also the faster way."
            )
        seen = _ascending_without_repeats(self.spool.tasks)
        first = bytearray(len(seen))
        for item in self._pending():
            task = self.spool.tasks[item.number]
            place = bisect_left(seen, task)
            if not _has(known, task):
                self._reject(item, "task", f"project {self.asked.project} has no task {task}")
            elif first[place]:
                self._reject(item, "task", "this file has an earlier prediction for the same task")
            first[place] = 1

    def _known(self) -> array[int]:
        return ids_between(self.studio, self.asked.project, min(self.spool.tasks), max(self.spool.tasks))

    def _settle_existing(self, holders: array[int]) -> None:
        for number, task in enumerate(self.spool.tasks):
            if self.todo[number] and _has(holders, task):
                if self.asked.existing == "skip":
                    self.todo[number] = 0
                    self.counts["existing"] += 1
                else:
                    self.counts["replaced"] += 1

    def _delete_older(self, holders: array[int], there: int) -> int:
        """Delete the predictions of this version from the tasks that get a new one. How many there were."""
        what = f"the predictions of {self.version}"
        mine = _ascending_without_repeats(
            array("q", (task for number, task in enumerate(self.spool.tasks) if self.todo[number]))
        )
        if all(_has(mine, task) for task in holders):  # all there are: at once, which is ten times as quick
            return delete_version(self.studio, self.asked.project, self.version, there)
        gone = 0
        for task, older in self._stored(mine):
            if _has(mine, task):
                for prediction in older:
                    self._delete(prediction["id"], what)
                    gone += 1
                    self.report.progress(gone, self.rejections.count, None)
        return gone

    # --- sending

    def _send_all(self) -> None:
        self.counts["sent"] = sum(self.todo)
        fruitless = 0
        while any(self.todo):
            for call in self._calls():
                before = self.counts["created"]
                trouble = self._send(call)
                fruitless = 0 if trouble is None or self.counts["created"] > before else fruitless + 1
                if trouble is not None and fruitless >= FRUITLESS:
                    raise LsmlError(trouble.message, self._how_to_go_on()) from trouble
                done = self.counts["sent"] - sum(self.todo)
                self.report.progress(done, self.rejections.count, done / max(1, self.counts["sent"]))
                if trouble is not None:
                    break  # the rest is divided anew

    def _send(self, call: Sequence[Item]) -> LsmlError | None:
        """One call. None when it was answered, else what went wrong, with what arrived taken off the list."""
        weight = len(call) + self.size
        note = self.underway.begin(self._there(), SECONDS_EACH[0] + SECONDS_EACH[1] * weight)
        body = b"[" + b",".join(item.body for item in call) + b"]"
        begun = time.monotonic()
        self.counts["calls"] += 1
        try:
            answer = self.studio.change(
                "POST",
                f"/api/projects/{self.asked.project}/import/predictions",
                f"the import of {len(call):,} predictions",
                body,
                within=600 + 0.05 * weight,
            )
        except Unclear as error:
            self.report.note(f"{error.message} Looking for what has arrived.", important=True)
            if not error.over:
                wait_for(note, self._there)
            if not self._take_off(call):  # perhaps it was too much for somebody on the way
                self.most, self.largest = max(1, len(call) // 2), max(SMALLEST, len(body) // 2)
            self.underway.end()
            return error
        except Refused as error:
            self.underway.end()
            if error.status == 413 and self.largest > SMALLEST:
                self.largest = max(SMALLEST, len(body) // 2)
                return error
            if error.status == 400 and self._reject_vanished(call):
                return error
            raise LsmlError(error.message, f"{error.hint} {self._how_to_go_on()}") from error
        self.sending += time.monotonic() - begun
        created = answer.get("created") if isinstance(answer, dict) else None
        for item in call:
            self.todo[item.number], self.taken[item.number] = 0, 1
        self.counts["created"] += created if isinstance(created, int) else 0
        self.short = self.short or created != len(call)
        self.underway.end()
        return None

    def _calls(self) -> Iterator[list[Item]]:
        call: list[Item] = []
        size = 0
        for item in self._pending():
            if call and (len(call) >= self.most or size + len(item.body) > self.largest):
                yield call
                call, size = [], 0
            call.append(item)
            size += len(item.body) + 1
        if call:
            yield call

    def _pending(self) -> Iterator[Item]:
        return (item for item in self.spool if self.todo[item.number])

    def _take_off(self, call: Sequence[Item]) -> int:
        """Look up which of these have arrived; how many."""
        holders = self._holders()
        before = self.counts["created"]
        for item in call:
            if _has(holders, self.spool.tasks[item.number]):
                self.todo[item.number] = 0
                self.counts["created"] += 1
        return self.counts["created"] - before

    def _reject_vanished(self, call: Sequence[Item]) -> bool:
        """Whether tasks have been deleted since they were looked for: one of them costs the whole call."""
        known = self._known()
        gone = [item for item in call if not _has(known, self.spool.tasks[item.number])]
        for item in gone:
            self._reject(item, "task", f"project {self.asked.project} has this task no longer")
            self.counts["sent"] -= 1
        return bool(gone)

    def _reject(self, item: Item, stage: Literal["task", "send"], reason: str) -> None:
        self.todo[item.number] = 0
        self.rejections.add(stage, reason, self.spool.tasks[item.number], item.index, item.place)

    def _how_to_go_on(self) -> str:
        there = f"{self.counts['created']:,} of {self.counts['sent']:,} predictions are there."
        return f"{there} Run the same again: it sends what is missing."

    # --- afterwards

    def _find_dropped(self) -> None:
        """Label Studio leaves out in silence what its own check does not like."""
        holders = self._holders()
        reason = (
            "Label Studio has left it out and does not say why; its log does ('Prediction validation failed'),"
            " if its label config was not changed meanwhile"
        )
        for item in self.spool:
            if self.taken[item.number] and not _has(holders, self.spool.tasks[item.number]):
                self._reject(item, "send", reason)

    def _remove_doubles(self) -> None:
        """Of equal predictions of this version that a task of ours has, keep the first."""
        mine = _ascending_without_repeats(self.spool.tasks)
        different = 0
        for task, stored in self._stored(mine, several=True):
            if not _has(mine, task):
                continue
            kept: list[Mapping[str, Any]] = []
            for prediction in sorted(stored, key=lambda each: int(each["id"])):
                if any(_same(prediction, other) for other in kept):
                    self._delete(prediction["id"], "a prediction that is there twice")
                    self.counts["doubles"] += 1
                    self.report.progress(self.counts["doubles"], self.rejections.count, None)
                else:
                    kept.append(prediction)
            different += len(kept) > 1
        if different:
            self.notes.append(
                f"{different:,} tasks have several predictions of {self.version} that differ; they were left alone."
            )

    def _show(self) -> None:
        """Make the version the one that the project shows, and say what else may hide it."""
        before = self.project.get("model_version") or ""
        shown = self.studio.project(self.asked.project).get("model_version") or ""  # deleting a version unsets it
        if shown != self.version and self.asked.activate:
            self.studio.settle(
                "PATCH",
                f"/api/projects/{self.asked.project}/",
                f"the version that project {self.asked.project} shows",
                {"model_version": self.version},
                within=300,
            )
            if before not in ("", self.version):
                backend = "" if before in self._versions() else ", a connected ML backend"
                self.notes.append(f"The project shows predictions of {self.version} now; before: {before}{backend}.")
        elif shown != self.version:
            what = f"those of {shown}" if shown else "none"
            self.notes.append(
                f"Annotators do not get these predictions yet: the project shows {what} (Settings -> Annotation)."
            )
        if self.project.get("show_collab_predictions") is False:
            self.notes.append(
                "The project shows no predictions: see Settings -> Annotation -> Use predictions to prelabel tasks."
            )

    # --- what is there

    def _versions(self) -> dict[str, int]:
        return versions_of(self.studio, self.asked.project)

    def _there(self) -> int:
        return self._versions().get(self.version, 0)

    def _holders(self) -> array[int]:
        """The ids of the tasks that have a prediction of this version, ascending."""
        found = array("q")
        # The list finds versions by a part of their names, in any case.
        alike = [each for each in self._versions() if self.version.lower() in each.lower() and each != self.version]
        if alike:
            found.extend(task for task, _ in self._stored(None))
            return found
        for page in list_tasks(self.studio, self.asked.project, [self._of_version]):
            found.extend(task["id"] for task in page.tasks)
        return found

    def _stored(self, tasks: array[int] | None, several: bool = False) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """The tasks with predictions of this version, and these in full.

        tasks    only from the first of these to the last; several: only those with more than one prediction
        """
        conditions = [self._of_version]
        if several:
            conditions.append(condition("total_predictions", "greater", "Number", 1))
        if tasks:
            conditions.append(condition("id", "in", "Number", {"min": tasks[0], "max": tasks[-1]}))
        for page in list_tasks(self.studio, self.asked.project, conditions, include=None):
            for task in page.tasks:
                stored = [each for each in task["predictions"] if each.get("model_version") == self.version]
                if stored:
                    yield task["id"], stored

    @property
    def _of_version(self) -> Mapping[str, Any]:
        return condition("predictions_model_versions", "contains", "List", [self.version])

    def _delete(self, prediction: int, what: str) -> None:
        try:
            self.studio.settle("DELETE", f"/api/predictions/{prediction}/", what)
        except Refused as error:
            if error.status != 404:  # gone already
                raise


def versions_of(studio: Studio, project: int) -> dict[str, int]:
    """How many predictions of each version a project has."""
    path = f"/api/projects/{project}/model-versions/"
    found = studio.ask(path, f"the versions in project {project}", {"extended": "true"})
    return {str(each["model_version"]): int(each["count"]) for each in found.get("static") or ()}


def delete_version(studio: Studio, project: int, version: str, count: int) -> int:
    """Delete every prediction of a version, of which there are `count`. How many went. It may be sent again at will."""
    path = f"/api/projects/{project}/model-versions/"
    what = f"the predictions of {version}"
    for _ in range(FRUITLESS):
        try:
            answer = studio.change("DELETE", path, what, {"model_version": version}, within=600 + 0.1 * count)
            return int(answer["deleted_predictions"]) if isinstance(answer, dict) else count
        except Unclear as error:
            problem = error
            if not versions_of(studio, project).get(version):
                return count
    raise LsmlError(problem.message, "Run the same again: it deletes what is left.") from problem


def take_back(studio: Studio, project: int, version: str, dry_run: bool) -> int:
    """Delete a version from a project; how many predictions it had. Raises UsageError where there is none."""
    known = versions_of(studio, project)
    if version not in known:
        there = listed(f"{each} ({known[each]:,})" for each in closest_first(version, known))
        raise UsageError(
            f"Project {project} has no predictions of {version!r}.", f"It has those of: {there or 'no version'}."
        )
    return known[version] if dry_run else delete_version(studio, project, version, known[version])


def _has(ascending: array[int], number: int) -> bool:
    place = bisect_left(ascending, number)
    return place < len(ascending) and ascending[place] == number


def _ascending_without_repeats(numbers: array[int]) -> array[int]:
    return array("q", sorted(set(numbers)))


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return bool(one["result"] == other["result"] and one["score"] == other["score"])
