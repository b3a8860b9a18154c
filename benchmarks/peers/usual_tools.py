"""What a user would chain today: Torch-Pruning, plain retraining, and ONNX Runtime's own quantizer."""

import copy
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from torch import nn

from compressor.files.export import export_onnx
from compressor.stage import Context
from compressor.storage import read_json, write_json
from compressor.training.loop import train
from compressor.training.optimizers.choices import SGD
from compressor.training.settings import TrainingSettings
from compressor.workload import Workload, batches_of, call_model, first_batches, input_tensors, predict


def quantize_static_defaults(onnx_bytes: bytes, workload: Workload) -> bytes:
    """`onnxruntime.quantization.quantize_static` as called with nothing but the model and the data (S8S8)."""
    return _quantize_static(onnx_bytes, workload)


def quantize_static_u8s8(onnx_bytes: bytes, workload: Workload) -> bytes:
    """The same with unsigned activations and signed weights per channel, the best that its documentation advises."""
    from onnxruntime.quantization import QuantType

    return _quantize_static(
        onnx_bytes,
        workload,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def quantize_static_percentile(onnx_bytes: bytes, workload: Workload, *, samples: int) -> bytes:
    """The same with ranges that hold 99.999 % of the values of `samples` samples: it keeps every activation of them."""
    from onnxruntime.quantization import CalibrationMethod, QuantType

    return _quantize_static(
        onnx_bytes,
        workload,
        samples=samples,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.Percentile,
    )


def quantize_dynamic_defaults(onnx_bytes: bytes, _workload: Workload) -> bytes:
    """`onnxruntime.quantization.quantize_dynamic` as called with nothing but the model, preprocessed as advised."""
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        source, clean, result = (Path(folder) / name for name in ("source.onnx", "clean.onnx", "result.onnx"))
        source.write_bytes(onnx_bytes)
        quant_pre_process(source, clean, skip_symbolic_shape=True)
        quantize_dynamic(clean, result)
        return result.read_bytes()


def _quantize_static(onnx_bytes: bytes, workload: Workload, *, samples: int | None = None, **options) -> bytes:
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    names = [item.name for item in onnxruntime.InferenceSession(onnx_bytes).get_inputs()]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches_of(workload.calibration))
            self.left = samples

        def get_next(self):
            batch = next(self.batches, None) if self.left is None or self.left > 0 else None
            if batch is None:
                return None
            tensors = [tensor[: self.left].numpy() for tensor in input_tensors(batch[0])]
            self.left = None if self.left is None else self.left - len(tensors[0])
            return dict(zip(names, tensors, strict=True))

    with tempfile.TemporaryDirectory() as folder:
        source, clean, result = (Path(folder) / name for name in ("source.onnx", "clean.onnx", "result.onnx"))
        source.write_bytes(onnx_bytes)
        quant_pre_process(source, clean, skip_symbolic_shape=True)
        quantize_static(clean, result, Reader(), **options)
        return result.read_bytes()


def prune_to_macs(
    model: nn.Module,
    example: torch.Tensor,
    *,
    ratio: float,
    importance: object = None,
    round_to: int | None = None,
    count: Callable[[nn.Module], float] | None = None,
    before_step: Callable[[nn.Module], None] | None = None,
) -> nn.Module:
    """A copy pruned by Torch-Pruning, globally, until `count(model)` has fallen by `ratio`.

    The importance is group L2 and the count the library's own of MACs unless given; `before_step(model)` may compute
    the gradients that an importance reads. The layers that make the output are left alone.
    """
    import torch_pruning as tp

    def own_count(model: nn.Module) -> float:
        return tp.utils.count_ops_and_params(model, example)[0]

    counted = count or own_count
    pruned = copy.deepcopy(model).train(mode=False)
    for parameter in pruned.parameters():
        parameter.requires_grad_(True)
    pruner = tp.pruner.BasePruner(
        pruned,
        example,
        importance=importance or tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=0.9,
        iterative_steps=200,
        round_to=round_to,
        ignored_layers=output_layers(pruned, example),
        # The library's defaults are shared dictionaries: another pruner's groups would leak in.
        in_channel_groups={},
        out_channel_groups={},
    )
    before = counted(pruned)
    for _ in range(200):
        if before_step is not None:
            before_step(pruned)
        pruner.step()
        if before / counted(pruned) >= ratio:
            return pruned.eval()
    raise RuntimeError(
        f"Torch-Pruning did not reach {ratio}x fewer MACs: {before / counted(pruned):.2f}x when everything it may "
        "remove was gone"
    )


def output_layers(model: nn.Module, example: object) -> list[nn.Module]:
    """The layer with weights that runs last, which makes the output of the networks here."""
    ran: list[nn.Module] = []
    kinds = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001 - torch has no public name for all convolutions
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.modules()
        if isinstance(module, kinds)
    ]
    with torch.no_grad():
        call_model(model, example)
    for hook in hooks:
        hook.remove()
    return ran[-1:]


def layer_macs(model: nn.Module, example: torch.Tensor) -> float:
    """The multiply-accumulates of the convolutions and linear layers for the first sample of `example`."""
    total = 0

    def add(module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
    hooks = [module.register_forward_hook(add) for module in model.modules() if isinstance(module, kinds)]
    with torch.no_grad():
        model(example[:1])
    for hook in hooks:
        hook.remove()
    return total


def gradients_of(workload: Workload, batches: int) -> Callable[[nn.Module], None]:
    """What gives a model the gradients of the loss, summed over the same training batches at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        data = first_batches(workload.train, batches)

    def compute(model: nn.Module) -> None:
        model.zero_grad()
        for inputs, targets in data:
            torch.autograd.backward(workload.loss(predict(model, inputs), targets))

    return compute


def prune_retrain(workload: Workload, *, seconds: float, learning_rate: float, folder: Path, seed: int) -> tuple:
    """Torch-Pruning at 2x MACs, then as many epochs of cross-entropy as fit into `seconds`, in compressor's own loop.

    Returns (model, epochs, seconds spent training). The loop is the faster one, so the peer gets more epochs than it
    would have. `folder` keeps the snapshots: a killed training goes on, with the number of epochs found first.
    """
    example = next(iter(workload.calibration))[0][:2]
    pruned = prune_to_macs(workload.model, example, ratio=2.0)
    chosen = folder / "epochs.json"
    if not chosen.exists():
        write_json(chosen, affordable_epochs(pruned, workload, seconds, seed))
    epochs = read_json(chosen)
    logs = train(
        pruned,
        workload,
        TrainingSettings(epochs=epochs, optimizer=SGD(rate=learning_rate)),
        context=Context(seed=seed, folder=folder),
        label="Torch-Pruning, retraining",
    )
    return pruned, epochs, sum(log.seconds for log in logs)


def affordable_epochs(model: nn.Module, workload: Workload, seconds: float, seed: int) -> int:
    """How many epochs of training `model` fit into `seconds`, at least 1: forty batches tell what an epoch takes."""
    some = list(islice(workload.train, 40))
    probe = Workload(**{**vars(workload), "train": some, "validation": some[:1]})
    timed = copy.deepcopy(model)
    for _ in range(2):  # the first pass warms up
        started = time.perf_counter()
        train(
            timed,
            probe,
            TrainingSettings(epochs=1, optimizer=SGD(rate=1e-4)),
            context=Context(seed=seed, progress=False),
        )
        per_image = (time.perf_counter() - started) / sum(len(targets) for _, targets in some)
    # Scoring an image on validation costs a third of training on it.
    images = len(workload.train.indices) + len(workload.validation.indices) / 3
    return max(1, int(seconds / (per_image * images)))


def export(model: nn.Module, workload: Workload) -> bytes:
    """The float ONNX file of `model`, by the same exporter that everybody gets here."""
    return export_onnx(model.eval(), workload).onnx_bytes
