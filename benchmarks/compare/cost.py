"""Seconds of the processor, which no other program on the machine changes, beside or in place of those of the wall."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from unittest import mock

import torch

from compressor.running import applying


def processor_seconds() -> float:
    """What this process and the children that have ended took of the processors so far."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


@contextmanager
def stages_by_the_processor() -> Iterator[None]:
    """Within it runs tell as the seconds of a stage what this process took of the processors, by one thread of torch.

    Threads that wait for each other would count as work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with mock.patch.object(applying, "time", SimpleNamespace(perf_counter=time.process_time)):
            yield
    finally:
        torch.set_num_threads(threads)
