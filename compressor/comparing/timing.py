"""Files of several runs timed one after another in one session: times of different days do not compare."""

from collections.abc import Mapping

from compressor.measuring.quiet import quiet_machine
from compressor.measuring.session_times import Times
from compressor.measuring.timing import Timing, time_interleaved
from compressor.storage import sha256
from compressor.target import Target
from compressor.workload import Workload, resize_batch


def timed_together(
    files: Mapping[str, bytes], reference: bytes, workload: Workload, target: Target, times: Times
) -> dict[str, Timing]:
    """Each of `files` against the reference's, in turns, all in this session.

    The same bytes under two names are timed once. What was timed together before is told again, so that a comparison
    which had ended is the same when it is asked for again.
    """
    inputs = resize_batch(workload.example_inputs, target.batch_size)

    def take() -> dict[str, Timing]:
        with quiet_machine(target.threads):
            known = {
                digest: time_interleaved(file, reference, inputs, threads=target.threads)
                for digest, file in {sha256(file): file for file in files.values()}.items()
            }
        return {name: known[sha256(file)] for name, file in files.items()}

    digests = sorted((name, sha256(file)) for name, file in files.items())
    return times.together(repr((digests, sha256(reference), target.batch_size, target.threads)), take)
