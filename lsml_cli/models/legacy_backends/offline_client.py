"""Answer calls of label_studio_sdk's clients from an export while a script trains on it.

No request leaves this machine. A call that an export cannot answer raises ModelError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, NoReturn

from lsml_cli.errors import ModelError
from lsml_cli.models.legacy_backends.module_isolation import make_module

ExportedTasks = Sequence[Mapping[str, Any]]


class AttrDict(dict[str, Any]):
    """A JSON object as both generations of the SDK return it: `task["data"]` and `task.data`."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"an export has no {name!r} here; it has: {', '.join(self)}") from None


class _OfflineStub:
    """An object of the SDK; calling a method that it does not define raises ModelError."""

    _sdk_name = "label_studio_sdk"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        method = f"{self._sdk_name}.{name}"

        def refuse(*_: Any, **__: Any) -> NoReturn:
            raise ModelError(
                f"The script asks Label Studio for {method}, which an export cannot answer.",
                "An export has only tasks, their annotations and the label config.",
            )

        return refuse


class Project(_OfflineStub):
    """The project of `Client(…).get_project(id)`: the tasks of the export, and the label config."""

    _sdk_name = "Project"

    def __init__(self, project: int, tasks: ExportedTasks, label_config: str) -> None:
        self.id = project
        self.label_config = label_config
        self.params = {"id": project, "title": "export", "label_config": label_config}
        self.title = "export"
        self._tasks = [AttrDict(task) for task in tasks]

    def get_params(self) -> dict[str, Any]:
        """Return the project as the API does."""
        return self.params

    def get_tasks(self, selected_ids: Sequence[int] | None = None, **_: Any) -> list[AttrDict]:
        """Return all tasks, or those with these ids."""
        return [task for task in self._tasks if selected_ids is None or task.get("id") in selected_ids]

    def get_labeled_tasks(self, only_ids: bool = False) -> list[Any]:
        """Return the annotated tasks, or their ids."""
        labeled = [task for task in self._tasks if task.get("annotations")]
        return [task.get("id") for task in labeled] if only_ids else labeled

    def get_labeled_tasks_ids(self) -> list[Any]:
        """Return the ids of the annotated tasks."""
        return self.get_labeled_tasks(only_ids=True)

    def get_task(self, task_id: int) -> AttrDict:
        """Return one task; raise ModelError if the export does not have it."""
        return _find_task(self._tasks, task_id)

    def export_tasks(self, export_type: str = "JSON", **_: Any) -> list[AttrDict]:
        """Return the annotated tasks; only JSON is available."""
        if export_type != "JSON":
            raise ModelError(f"The script asks for an export as {export_type}; only JSON is available.")
        return self.get_labeled_tasks()


class _TasksClient(_OfflineStub):
    _sdk_name = "tasks"

    def __init__(self, project: Project) -> None:
        self._project = project

    def list(self, **_: Any) -> Iterator[AttrDict]:
        return iter(self._project.get_tasks())

    def get(self, id: Any, **_: Any) -> AttrDict:
        return self._project.get_task(int(id))


class _AnnotationsClient(_OfflineStub):
    _sdk_name = "annotations"

    def __init__(self, project: Project) -> None:
        self._project = project

    def list(self, id: Any, **_: Any) -> list[AttrDict]:
        return [AttrDict(annotation) for annotation in self._project.get_task(int(id)).get("annotations", ())]


class _ExportsClient(_OfflineStub):
    _sdk_name = "projects.exports"

    def __init__(self, project: Project) -> None:
        self._project = project

    def as_json(self, project_id: Any = None, **_: Any) -> list[AttrDict]:
        return self._project.get_labeled_tasks()


class _ProjectsClient(_OfflineStub):
    _sdk_name = "projects"

    def __init__(self, project: Project) -> None:
        self._project = project
        self.exports = _ExportsClient(project)

    def get(self, id: Any = None, **_: Any) -> AttrDict:
        return AttrDict(self._project.params)

    def list(self, **_: Any) -> list[AttrDict]:
        return [self.get()]


def build_offline_sdk(project: int, tasks: ExportedTasks, label_config: str) -> dict[str, ModuleType]:
    """Return the modules of label_studio_sdk, with clients that know one project."""
    exported_project = Project(project, tasks, label_config)

    class Client(_OfflineStub):
        _sdk_name = "Client"

        def __init__(self, *_: Any, **__: Any) -> None:
            pass

        def check_connection(self) -> dict[str, str]:
            return {"status": "UP"}

        def get_project(self, *_: Any, **__: Any) -> Project:
            return exported_project

        def get_projects(self, **_: Any) -> list[Project]:
            return [exported_project]

        list_projects = get_projects

    class LabelStudio(_OfflineStub):
        _sdk_name = "LabelStudio"

        def __init__(self, *_: Any, **__: Any) -> None:
            self.tasks = _TasksClient(exported_project)
            self.annotations = _AnnotationsClient(exported_project)
            self.projects = _ProjectsClient(exported_project)

    content = {"Client": Client, "LabelStudio": LabelStudio, "Project": Project}
    return {name: make_module(name, content) for name in ("label_studio_sdk", "label_studio_sdk.client")}


def _find_task(tasks: Sequence[AttrDict], task_id: int) -> AttrDict:
    for task in tasks:
        if task.get("id") == task_id:
            return task
    raise ModelError(f"The script asks Label Studio for task {task_id}, which the export does not have.")
