"""Models that no stage could work with are refused before any work, with the place and what helps there."""

import copy
import dataclasses
import functools
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune

from compressor import Pipeline
from compressor.errors import WorkloadError
from compressor.metrics import Metric
from compressor.running.model_checks import check_model
from compressor.running.preflight import check_workload
from compressor.stages import Distill, FineTune, PruneChannels, Quantize
from compressor.workload import Workload
from workbench.same_data import same_data


def net() -> nn.Sequential:
    """Images of 4x4 to four classes."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(), nn.Linear(128, 4)
    ).eval()


def workload(model: nn.Module, **changes: Any) -> Workload:
    """Images of four classes, with the given fields changed."""
    data = [(torch.randn(4, 3, 4, 4), torch.arange(4)) for _ in range(2)]
    made = same_data(model, data, torch.randn(2, 3, 4, 4))
    return dataclasses.replace(made, **changes)


def refusal(model: nn.Module, *stages: Any, **changes: Any) -> str:
    """Why a run of `stages` is refused; nothing of it is begun."""
    with pytest.raises(WorkloadError) as caught:
        check_workload(workload(model, **changes), stages)
    return str(caught.value)


# Each of these is run by torch, and is nothing that a stage could take hold of.


def scripted() -> nn.Module:
    model = net()
    model[2] = torch.jit.script(model[2])
    return model


def traced() -> nn.Module:
    return torch.jit.trace(net(), torch.randn(2, 3, 4, 4))


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(4)).eval()


def lazily_normed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.Linear(16, 4)).eval()


def inferred() -> nn.Module:
    with torch.inference_mode():
        return net()


def buffer_of_inference() -> nn.Module:
    model = net()
    with torch.inference_mode():
        model.register_buffer("scale", torch.ones(2))
    return model


def without_values() -> nn.Module:
    with torch.device("meta"):
        return net()


def sparse() -> nn.Module:
    model = net()
    model.register_buffer("graph", torch.eye(3).to_sparse())
    return model


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao and its tensors go, models made by it stay
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})


def observed() -> nn.Module:
    model = net()
    model.add_module("watch", torch.ao.quantization.observer.MinMaxObserver())
    return model


def parallel() -> nn.Module:
    return nn.DataParallel(net())


def averaged() -> nn.Module:
    return torch.optim.swa_utils.AveragedModel(net())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # models made by it stay
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # said whenever one is made
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (scripted, "the submodule '2' is TorchScript (RecursiveScriptModule)"),
        (traced, "model is TorchScript (TopLevelTracedModule)"),
        (lazy, "never called have none yet: 0.weight, 0.bias, 2.weight, 2.bias; call model(inputs) once"),
        (lazily_normed, "never called have none yet: 1.weight, 1.bias, 1.running_mean, 1.running_var; call"),
        (inferred, "made in torch.inference_mode() never do: 0.weight, 0.bias, 2.weight, 2.bias, 4.weight and 1 more"),
        (buffer_of_inference, "made in torch.inference_mode() never do: scale; pass copy.deepcopy(model)"),
        (without_values, "0.weight is on the meta device"),
        (lambda: net().bfloat16(), "got bfloat16 in 0.weight, 0.bias, 2.weight, 2.bias, 4.weight and 1 more. Pass"),
        (lambda: net().half(), "got float16 in 0.weight"),
        (lambda: net().double(), "got float64 in 0.weight"),
        (sparse, "got torch.sparse_coo of torch.float32 in graph; convert it with to_dense()"),
        (quantized, "the submodule '4' (Linear) is quantized, or prepared for it, by torch.ao; pass the float model"),
        (observed, "the submodule 'watch' (MinMaxObserver) is quantized, or prepared for it"),
        (parallel, "model is wrapped in DataParallel, which hides the layers from the stages; pass the inner module"),
        (averaged, "pass the inner module: model.module"),
    ],
)
def test_what_no_stage_could_work_with_is_named(make: Callable[[], nn.Module], told: str) -> None:
    """The part, by its path, and what to do."""
    assert told in refusal(make())


@pytest.mark.parametrize("stages", [[Quantize()], [FineTune(epochs=1)]])
def test_what_the_refusals_advise_helps(stages: list[Any]) -> None:
    """A copy made outside of inference mode, a float copy of a half model, a model called once: all pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # lazy layers say that they are new
        called = lazy()
    called(torch.randn(2, 3, 4, 4))
    for model in (copy.deepcopy(inferred()), net().half().float(), called):
        check_workload(workload(model), stages)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf])
def test_a_mask_of_infinities_is_a_constant(value: float) -> None:
    """What attention adds to forbid a place is -inf; NaN there, and infinite statistics, are faults."""
    model = net()
    model.register_buffer("mask", torch.full((2, 2), value).triu(1))
    check_model(model)
    model.mask[0, 0] = torch.nan
    with pytest.raises(WorkloadError, match=r"NaN or Inf in mask \(1 of 4\)"):
        check_model(model)


class Holder(nn.Module):
    """A net with something else in it."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.net = net()
        vars(self).update(held)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def counter() -> Iterator[int]:
    yield from range(3)


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ({"mutex": threading.Lock()}, "model.mutex, of type lock, cannot be copied (TypeError: cannot pickle"),
        ({"state": {"a": [1, threading.RLock()]}}, "model.state['a'][1], of type RLock, cannot be copied"),
        ({"stream": counter()}, "model.stream, of type generator, cannot be copied"),
        ({"log": type("Log", (), {})()}, "model.log.file, of type TextIOWrapper, cannot be copied"),
    ],
)
def test_what_cannot_be_copied_is_named_by_its_path(held: dict[str, Any], told: str) -> None:
    """The innermost attribute that is at fault, however deep in containers and objects."""
    with open(__file__) as file:  # noqa: PTH123 - any open file
        if "log" in held:
            held["log"].file = file
        message = refusal(nn.Sequential(net()[:4], Holder(**held)) if "stream" in held else Holder(**held))
    assert told.replace("model.", "model.1." if "stream" in held else "model.") in message
    assert "leave it out of copies in __getstate__" in message


def test_what_forward_left_behind_can_be_copied() -> None:
    """A feature map with its graph in an attribute: copies hold its values."""
    model = Holder()
    model.features = model.net(torch.randn(2, 3, 4, 4))
    check_workload(workload(model), [FineTune(epochs=1)])


class Closed(nn.Module):
    """Layers that a function holds, which every copy shares."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 4), nn.Linear(4, 4)
        self.body = lambda x: F.relu(self.conv(x)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Bound(Closed):
    """The same by a method, which copies bind to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.body = functools.partial(self.convolved, 1.0)

    def convolved(self, factor: float, x: Tensor) -> Tensor:
        return factor * F.relu(self.conv(x)).flatten(1)


def hooked() -> nn.Module:
    model = net()
    model[0].register_forward_hook(lambda *_: model[2].bias.sum() + _[-1])
    return model


def test_functions_that_hold_the_original_are_found() -> None:
    """A copy of such a model computes with the original's weights: pruning it would change nothing, or break it."""
    assert "a copy of the model computes with conv.bias, conv.weight of the original" in refusal(Closed().eval())
    assert "computes with 2.bias of the original" in refusal(hooked())
    check_workload(workload(Bound().eval()))


class Copied(Holder):
    """A net whose copies are made by `how`."""

    def __init__(self, how: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.how = how

    def __deepcopy__(self, memo: Any) -> Any:
        return self.how(self, memo)


def rebuilt(self: Copied, **changes: Any) -> Copied:
    made = Copied(self.how)
    made.load_state_dict(self.state_dict())
    for name, change in changes.items():
        setattr(made, name, change)
    return made


def untied(self: Copied, _: Any) -> Copied:
    made = rebuilt(self)
    made.net[2].bias = nn.Parameter(self.net[0].bias.detach().clone())
    return made


def rescaled(self: Copied, _: Any) -> Copied:
    made = rebuilt(self)
    with torch.no_grad():
        made.net[0].weight.mul_(2)
    return made


def widened(self: Copied, _: Any) -> Copied:
    made = rebuilt(self)
    made.register_buffer("more", torch.zeros(1))
    return made


class Shifted(Copied):
    """A net whose copies forget a number."""

    shift = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.shift


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda self, _: self, "shares the memory of net.0.weight, net.0.bias"),
        (lambda self, _: self.net, "copy.deepcopy(model) gives Sequential, not Copied"),
        (rescaled, "a copy of the model has another value in net.0.weight"),
        (widened, "a copy of the model has other weights and buffers: more"),
        (untied, "net.0.bias, net.2.bias are one tensor in the model or in its copy, and not in both"),
    ],
)
def test_copies_that_are_something_else_are_refused(how: Callable[..., Any], told: str) -> None:
    """A __deepcopy__ that shares, loses, changes or unties what a stage works on."""
    model = Copied(how).eval()
    if how is untied:
        model.net[2].bias = model.net[0].bias
    message = refusal(model)
    assert told in message
    assert "mend __deepcopy__, __getstate__ or __reduce__" in message


@pytest.mark.parametrize("view", [lambda w: w, lambda w: w.T, lambda w: w[2:6]])
def test_parameters_in_one_memory_are_refused(view: Callable[[Tensor], Tensor]) -> None:
    """Old code ties by `.data`: trained, both change; of a copy one would."""
    model = net()
    held = nn.Sequential(nn.Identity(), model)
    held.register_parameter("tied", nn.Parameter(view(model[4].weight.data)))
    told = refusal(held)
    assert "1.4.weight" in told
    assert "tied" in told
    assert "are two parameters in one memory, which copies take apart; make them one" in told
    held.tied = model[4].weight
    check_workload(workload(held))


def test_parameters_beside_each_other_in_one_memory_pass() -> None:
    """Slices of one tensor that do not meet are parameters of their own."""
    model, flat = net(), torch.randn(20)
    model.register_parameter("first", nn.Parameter(flat[:8]))
    model.register_parameter("second", nn.Parameter(flat[8:].view(3, 4)))
    check_model(model)


def test_copies_that_lose_a_number_are_refused() -> None:
    """What is no tensor counts by what it does to the output."""
    model = Shifted(lambda self, _: Shifted(self.how).eval()).eval()
    model.how = lambda self, _: rebuilt_shifted(self)
    model.shift = 1.0
    assert "a copy of the model computes something else than the model" in refusal(model)


def rebuilt_shifted(self: Shifted) -> Shifted:
    made = Shifted(self.how).eval()
    made.load_state_dict(self.state_dict())
    return made


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Counting(nn.Module):
    """A module that is another one at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x + self.calls


class Normalising(nn.Module):
    """A module that normalises its inputs in place."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).mul_(2)


@pytest.mark.parametrize(
    ("first", "told"),
    [
        (Noisy(), "draws random numbers there: an ONNX file draws others"),
        (nn.Sequential(nn.Identity(), Noisy()), "first differ in 0.1 (Noisy)"),
        (Counting(), "does not, nor under one seed. The outputs first differ in 0 (Counting)"),
        (Normalising(), "writes into its inputs, and gives another output for what is left there"),
    ],
)
def test_the_true_reason_for_two_outputs_is_told(first: nn.Module, told: str) -> None:
    """Random numbers, state from call to call and inputs that change are three faults with three ways out."""
    assert told in refusal(nn.Sequential(first, *net()))


class Partial(nn.Module):
    """Chen et al. 2023: a convolution of some channels, written back in place, as published for inference."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).clone()
        x[:, :2] = self.part(x[:, :2])
        return self.head(x.mean((2, 3)))


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@pytest.mark.parametrize("stage", [FineTune(epochs=1), Distill(epochs=1)])
def test_a_stage_that_trains_is_tried_before_any_work(stage: Any) -> None:
    """Frozen, detached and in-place models are refused where a stage trains, with the stage's name; else they pass."""
    frozen = net().requires_grad_(False)
    name = "fine_tune" if isinstance(stage, FineTune) else "distill"
    message = refusal(frozen, PruneChannels(remove=0.3), stage)
    assert message.startswith(f"{name} trains, and every parameter of Sequential is frozen; set requires_grad_(True)")
    assert "the output of Detached depends on no weight by a gradient" in refusal(Detached().eval(), stage)
    written = refusal(Partial().eval(), stage)
    assert "What forward() writes into (x[:, :4] = ..., x += ...) backward still needs" in written
    assert written.endswith(f"leave {name} out")
    for model in (frozen, Detached().eval(), Partial().eval()):
        check_workload(workload(model), [PruneChannels(remove=0.3), Quantize()])


def test_a_loss_without_gradient_is_refused_where_a_stage_trains() -> None:
    """A loss by numpy judges; it does not train."""

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return torch.tensor((outputs.argmax(1) != targets).double().mean().item())

    assert "the loss depends on no weight by a gradient" in refusal(net(), FineTune(epochs=1), loss=loss)
    check_workload(workload(net(), loss=loss), [Quantize()])


def test_a_stage_of_another_package_may_prepare_the_training() -> None:
    """Nobody here knows whether it unfreezes: what comes after it is not tried."""

    class Unfreeze:
        pass

    check_workload(workload(net().requires_grad_(False)), [Unfreeze(), FineTune(epochs=1)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x.bfloat16(), "got bfloat16 (2, 3, 4, 4); use .float() in the dataset or with transform="),
        (lambda x: x.to(torch.complex64), "got complex64 (2, 3, 4, 4); give real numbers, such as view_as_real()"),
        (lambda x: x.to_sparse(), "must be dense tensors with values, got torch.sparse_coo"),
        (lambda x: x.to("meta"), "must be dense tensors with values, got on the meta device"),
        (lambda x: x.requires_grad_(), "with requires_grad; use .detach()"),
    ],
)
def test_data_that_cannot_be_run_is_refused(change: Callable[[Tensor], Tensor], told: str) -> None:
    """As example, as input of a batch and as target, each with the conversion that helps."""
    odd = change(torch.rand(2, 3, 4, 4))
    assert "example_inputs must be " in refusal(net(), example_inputs=odd)
    assert told in refusal(net(), example_inputs=odd)
    regression = {"loss": F.mse_loss, "metric": Metric.mse()}
    sound = (torch.randn(2, 3, 4, 4), torch.rand(2, 3, 4, 4))
    message = refusal(nn.Identity(), **regression, train=[sound, (sound[0], odd)], example_inputs=sound[0])
    assert message.startswith("batch 1 of train must be ")


def test_data_of_inference_mode_is_refused() -> None:
    """Autograd saves no such tensors for a backward pass."""
    with torch.inference_mode():
        data = [(torch.randn(4, 3, 4, 4), torch.arange(4))]
    assert "batch 0 of train was made in torch.inference_mode(), and nothing can be trained on it" in refusal(
        net(), train=data
    )


def test_a_dataset_that_raises_is_named_with_its_line() -> None:
    """The set, the user's line and the error, wherever in a pass it arises."""

    class Torn:
        def __iter__(self) -> Iterator[Any]:
            yield torch.randn(4, 3, 4, 4), torch.arange(4)
            raise OSError("image 7 is truncated")

    message = refusal(net(), validation=Torn())
    assert message.startswith("validation cannot be read, in ")
    assert "test_model_checks.py:" in message
    assert "OSError: image 7 is truncated" in message


def test_a_model_that_takes_no_modes_is_typed() -> None:
    """An exported program's module raises for eval(): the refusal is typed all the same."""

    class Fixed(Holder):
        def train(self, mode: bool = True) -> Any:  # noqa: FBT001, FBT002 - torch's own
            raise NotImplementedError("Calling train() is not supported yet")

    assert "NotImplementedError: Calling train() is not supported yet" in refusal(Fixed())


def test_a_lack_of_memory_is_no_fault_of_the_inputs() -> None:
    """Smaller batches help there, and no other shape."""

    class Large(Holder):
        def forward(self, x: Tensor) -> Tensor:
            if self.training or len(x) > 2:
                raise MemoryError
            return self.net(x)

    assert "MemoryError: no message" in refusal(Large().eval())
    assert refusal(Large().eval()).endswith("The memory did not suffice: give smaller batches")


def test_masked_models_run_as_they_are(tmp_path: Any) -> None:
    """torch.nn.utils.prune computes the weight before each call: copies and gradients work, and nothing is refused."""
    model = net()
    prune.l1_unstructured(model[2], "weight", 0.5)
    model(torch.randn(2, 3, 4, 4))
    check_workload(workload(model), [PruneChannels(remove=0.3), FineTune(epochs=1)])


def test_no_gradient_mode_of_the_caller_reaches_a_run() -> None:
    """Under no_grad or inference_mode, as evaluation scripts are, a run trains and copies all the same."""

    class Seen(Exception):  # noqa: N818 - no failure
        pass

    def look(*_: Any, **__: Any) -> Any:
        assert torch.is_grad_enabled()
        assert not torch.is_inference_mode_enabled()
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("compressor.running.pipeline.check_workload", look)
        for mode in (torch.no_grad(), torch.inference_mode()):
            with mode, pytest.raises(Seen):
                Pipeline([Quantize()]).run(workload(net()))
