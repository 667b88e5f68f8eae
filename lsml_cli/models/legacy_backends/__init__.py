"""Run backends written for label_studio_ml, label_studio.ml and htx unmodified.

model.py             the lsml model that wraps a script
sdk_detection.py     which SDK a script was written for and which class is its model, without running it
import_sandbox.py    a script as a module, and what it shares with the stubs of its SDK
module_isolation.py  changes of sys.modules, sys.path and the environment that last while a script runs
media_files.py       the media of tasks as local files
version_folder.py    what of a version a script may read
sdk_adapter.py       the interface of the adapters, one for each generation of SDKs
v0_v1.py, v2.py, htx.py  the adapters, with the classes that scripts derive from
sdk_stub.py          modules that scripts of several generations import
offline_client.py    label_studio_sdk's client, answered from an export
labels.py, brush.py  the SDKs' functions for label configs, annotations and masks

None of these SDKs has to be installed; an installed one is used instead of its stub.
"""
