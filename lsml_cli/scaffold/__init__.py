"""Write the folder of a new model that runs at once: `lsml init` without its command line."""

from lsml_cli.scaffold.kinds import BACKEND_SCRIPT, OWN_MODEL, PROJECT_KINDS, ProjectKind
from lsml_cli.scaffold.project import ProjectOptions, WrittenProject, write_project

__all__ = [
    "BACKEND_SCRIPT",
    "OWN_MODEL",
    "PROJECT_KINDS",
    "ProjectKind",
    "ProjectOptions",
    "WrittenProject",
    "write_project",
]
