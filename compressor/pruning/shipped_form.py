"""The file that would ship, in float or in 8 bits, for timing alone."""

from torch import nn

from compressor.affine import Asymmetric, Symmetric
from compressor.export import export_onnx
from compressor.quantization.calibration import observe_tensors
from compressor.quantization.compact_graph import serialize
from compressor.quantization.policy import ByFamily, followers, placement_of
from compressor.quantization.prepare_graph import clean_graph
from compressor.quantization.quantize_graph import (
    Numbers,
    place_dynamic,
    place_static,
    place_weight_only,
    tensors_to_observe,
)
from compressor.stage import StageError
from compressor.target import Target
from compressor.workload import Workload, first_batches


def shipped_file(model: nn.Module, workload: Workload, target: Target, form: str) -> bytes:
    """The ONNX file of `model` in `form`, "float32" or "int8", as `target` would run it.

    The integer form is the default one of each operator family, with ranges from one calibration batch: its time does
    not depend on the ranges, its accuracy does. Raises ExportError, and StageError where nothing can be quantized.
    """
    exported = export_onnx(model, workload).onnx_bytes
    if form == "float32":
        return exported
    graph = clean_graph(exported)
    placement = placement_of(graph, ByFamily(), ())
    if not (placement.static or placement.dynamic or placement.weight_only):
        raise StageError(
            f"{type(model).__name__} has no operator with an 8-bit kernel; set form='float32' in the latency target"
        )
    numbers = Numbers(weights=Symmetric(), activations=Asymmetric(), signed_activations=target.signed_activations)
    quantized = graph
    if placement.static:
        static = {*placement.static, *followers(graph, set(placement.static))}
        tensors, same = tensors_to_observe(graph, static)
        observed, _ = observe_tensors(graph, tensors, first_batches(workload.calibration, 1), binned=False)
        ranges = {name: (seen.low, seen.high) for name, seen in observed.items() if seen.low <= seen.high}
        for name, source in reversed(same.items()):
            if source in ranges:
                ranges[name] = ranges[source]
        quantized = place_static(quantized, static, ranges, numbers)
    if placement.dynamic:
        quantized = place_dynamic(quantized, set(placement.dynamic), numbers.weights)
    if placement.weight_only:
        quantized = place_weight_only(quantized, set(placement.weight_only), numbers.weights)
    return serialize(quantized)
