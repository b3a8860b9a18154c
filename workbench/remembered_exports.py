"""What exporters wrote, kept on disk for the tests of one session: the same model is exported once."""

import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.files.child_process import Limit
from compressor.files.exporters import Written
from compressor.files.verification import ExportTask
from compressor.identity.values import Identifier


def remembered(
    write: Callable[..., Written], folder: Path, exporter: str, task: ExportTask, limit: Limit, **settings: Any
) -> Written:
    """`write(exporter, task, limit, **settings)`, or what it gave before in `folder` for a model of the same content.

    The content is all that a model is, its code and attributes as well as its weights. A model of which it cannot be
    known, and one that goes beyond the limit, is exported every time.
    """
    asked = (exporter, task.names, task.batched, task.tensors, limit.seconds, sorted(settings.items()))
    free = ([sorted(axes) for axes in task.free], {name: sorted(axes) for name, axes in task.free_of_outputs.items()})
    digest = Identifier().digest((asked, free, task.model))
    if digest.unknown:
        return write(exporter, task, limit, **settings)
    path = folder / digest.text
    if path.is_file():
        written: Written = pickle.loads(path.read_bytes())  # noqa: S301 - this session made it
        return written
    written = write(exporter, task, limit, **settings)
    folder.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(pickle.dumps(written))
    # Another process of the session may have written the same.
    Path(file.name).replace(path)
    return written
