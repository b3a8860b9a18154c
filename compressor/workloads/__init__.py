"""Ready workloads by name, and those of the user's own: `package.module:function`, or `model.onnx:data.npz`."""

import importlib
import sys
from pathlib import Path

from compressor.workload import Workload

_READY = {"digits": "compressor.workloads.digits:digits"}


def load(name: str) -> Workload:
    """The workload that `name` says: `digits`, what `package.module:function` returns, or two files.

    `model.onnx:data.npz` is an ONNX file on arrays, as `workload_of_files` reads them.

    The current folder is importable, so that a file of one's own beside the recipe is enough. Raises ValueError where
    there is no such module or function, or where it returns something else.
    """
    model, separator, data = name.partition(".onnx:")
    if separator:
        from compressor.workloads.files import workload_of_files

        return workload_of_files(Path(f"{model}.onnx"), Path(data))
    path = _READY.get(name, name)
    module_name, separator, function_name = path.partition(":")
    if not separator or not module_name or not function_name:
        raise ValueError(
            f"a workload is one of {', '.join(_READY)}, package.module:function, or model.onnx:data.npz, got {name!r}; "
            "the function takes nothing and returns a compressor.Workload"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise  # the user's module exists and lacks an import of its own
        raise ValueError(f"no module named {module_name!r} in {Path.cwd()} or among the installed packages") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"{module_name} has no function {function_name!r}")
    workload = function()
    if not isinstance(workload, Workload):
        raise ValueError(f"{name} must return a compressor.Workload, it returned {type(workload).__name__}")
    return workload
