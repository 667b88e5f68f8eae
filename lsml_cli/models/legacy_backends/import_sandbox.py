"""Import a script under a module name of its own, and provide what it needs while it is imported and while it runs."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any

from lsml_cli.errors import ModelError
from lsml_cli.models.legacy_backends.media_files import Fetch, MediaFiles
from lsml_cli.models.legacy_backends.module_isolation import (
    RESERVED_MODULE_NAMES,
    SiblingModules,
    environment_variables,
    patched_module,
    stub_modules,
)
from lsml_cli.models.legacy_backends.sdk_detection import SDK_NAMES, Generation, ScriptSource
from lsml_cli.models.loading import FILE_MODULE_PREFIX, error_location

SANDBOX_ATTR = "_lsml_sandbox"  # the attribute of a script's module that holds its sandbox


class ScriptSandbox:
    """One import of a script, with the SDK stubs that it sees.

    A script has one sandbox for each version that it predicts with, and one for each training: what it keeps in
    globals, or reads from the environment when it is imported, must not reach another version.

    Attributes:
        stubs: the SDK's modules by their full names, as the script imports them.
        server_calls: the arguments of each `init_model_server` of htx.
        update_functions: functions decorated with `update_fn` of label_studio_ml 2.0, by the name of their module.
        initial_state: values and parameters for the next `LabelStudioMLBase` of label_studio_ml 2.0.
    """

    def __init__(
        self,
        source: ScriptSource,
        generation: Generation,
        module_name: str,
        build_stubs: Callable[[ScriptSandbox], dict[str, ModuleType]],
    ) -> None:
        self.source = source
        self.generation = generation
        self.module_name = module_name
        self.server_calls: list[dict[str, Any]] = []
        self.update_functions: dict[str, Callable[..., Any]] = {}
        self.initial_state: Mapping[str, Any] = {}
        self._siblings: SiblingModules = {}
        self._files: MediaFiles | None = None
        self.stubs = build_stubs(self)

    def get_local_path(self, url: str, *_: Any, task_id: int | None = None, **__: Any) -> str:
        """Return a file with the content of a media value: `get_local_path` of every SDK.

        The options of the command decide how media are fetched; other arguments of the SDKs are ignored.
        """
        if self._files is None:
            raise ValueError(f"{url} cannot be fetched before there are tasks")
        return self._files.get_path(url, task_id)

    @contextmanager
    def importing(self) -> Iterator[None]:
        """Provide what the script needs while it is imported: the stubs, and the modules in its folder."""
        with stub_modules(self.stubs, self.source.path.parent, self._siblings):
            yield

    @contextmanager
    def running(
        self, fetch: Fetch | None, environ: Mapping[str, str], replacements: Mapping[str, ModuleType]
    ) -> Iterator[None]:
        """Provide what the script needs while it predicts or trains.

        Args:
            fetch: fetches media of tasks.
            environ: environment variables to set.
            replacements: modules that replace stubs, and whose attributes replace those of an installed module.
        """
        with ExitStack() as stack:
            stubs = {**self.stubs, **replacements}
            stack.enter_context(stub_modules(stubs, self.source.path.parent, self._siblings))
            for name, module in replacements.items():
                stack.enter_context(patched_module(name, module))
            stack.enter_context(environment_variables(environ))
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="lsml-script-", ignore_cleanup_errors=True))
            stack.callback(setattr, self, "_files", self._files)
            self._files = MediaFiles(fetch, Path(folder))
            yield

    def import_script(self) -> ModuleType:
        """Import the script, once; only inside `importing` or `running`.

        For itself and for its siblings the module has the name of its file, so that an instance of its own class that
        one version has pickled can be loaded by another.

        Raises:
            ModelError: importing it fails.
        """
        name, path = self.module_name, self.source.path
        if name in sys.modules:
            return sys.modules[name]
        stem = path.stem
        own_name = name if stem in RESERVED_MODULE_NAMES or stem in sys.modules or "." in stem else stem
        module_spec = importlib.util.spec_from_file_location(own_name, path)
        if module_spec is None or module_spec.loader is None:
            raise ModelError(f"{path} cannot be imported as Python.")
        module = importlib.util.module_from_spec(module_spec)
        setattr(module, SANDBOX_ATTR, self)
        sys.modules[name] = sys.modules[own_name] = module
        try:
            module_spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            for key in (name, own_name):
                sys.modules.pop(key, None)
            missing = getattr(error, "name", None) if isinstance(error, ImportError) else None
            raise ModelError(
                f"{path} was recognised as a script for {SDK_NAMES[self.generation]}, and cannot be imported: "
                f"{error_location(error)}.",
                f"Install the package that provides {missing}, unless it is a file of the script." if missing else None,
            ) from error
        return module


def open_sandbox(
    source: ScriptSource,
    generation: Generation,
    build_stubs: Callable[[ScriptSandbox], dict[str, ModuleType]],
    folder: Path | None,
    purpose: str = "predicting",
) -> ScriptSandbox:
    """Return the sandbox of a script that is already imported for this version and purpose, else a new one.

    Args:
        build_stubs: returns the SDK's modules for a sandbox.
        folder: the folder of the version; None for an untrained model.
        purpose: "predicting" or "learning".
    """
    version = f"{folder}, {purpose}" if folder else ""
    key = blake2b(f"{source.path}\0{version}".encode(), digest_size=4).hexdigest()
    module_name = f"{FILE_MODULE_PREFIX}{source.path.stem}_{key}"
    sandbox = getattr(sys.modules.get(module_name), SANDBOX_ATTR, None)
    if isinstance(sandbox, ScriptSandbox):
        return sandbox
    return ScriptSandbox(source, generation, module_name, build_stubs)


def bind_classes(sandbox: ScriptSandbox, classes: Sequence[type]) -> dict[str, type]:
    """Return a subclass of each class, by name, with the attribute `_sandbox`.

    The subclasses derive from each other like the originals, so that `issubclass` holds among those of one sandbox.

    Args:
        classes: base classes for scripts, parents before children.
    """
    bound: dict[type, type] = {}
    for original in classes:
        parents = [bound[ancestor] for ancestor in original.__mro__[1:] if ancestor in bound]
        attributes = {"_sandbox": sandbox, "__module__": original.__module__, "__doc__": original.__doc__}
        bound[original] = type(original.__name__, (original, *parents[:1]), attributes)
    return {original.__name__: subclass for original, subclass in bound.items()}
