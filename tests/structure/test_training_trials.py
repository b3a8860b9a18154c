"""What only training runs and writes is narrowed with the rest, or keeps its width."""

import copy
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compressor.structure.calling.shown import Shown, TrainingStep
from compressor.structure.graph import trace_structure
from compressor.structure.tensor_ids import tensors_of
from workbench.halving import free, halves, locks

INPUTS, TARGETS = torch.randn(8, 6), torch.randint(0, 5, (8,))
SHOWN = Shown(example=INPUTS[:2], step=TrainingStep(inputs=INPUTS, targets=TARGETS, loss=F.cross_entropy))


def check_training(model: nn.Module, shown: Shown = SHOWN) -> nn.Module:
    """The narrowed model, once it did two steps of training as the masked one: outputs and everything written."""
    narrow, masked, graph = halves(model, shown)
    kept = graph.sizes_without({g: list(range(0, g.width - 1, 2)) for g in free(graph).values()}).kept
    narrow, masked = narrow.double().train(), masked.double().train()
    for x in (INPUTS.double(), torch.randn(8, 6).double()):
        outputs = []
        for each in (narrow, masked):
            torch.manual_seed(0)
            raw = each(x)
            outputs.append(raw[0] if isinstance(raw, tuple) else raw)
            F.cross_entropy(outputs[-1], TARGETS).backward()
        torch.testing.assert_close(*outputs)
    whole = tensors_of(masked)
    for name, tensor in tensors_of(narrow).items():
        wanted = whole[name].detach()
        for dim, places in kept.get(name, {}).items():
            wanted = wanted.index_select(dim, torch.tensor(places))
        torch.testing.assert_close(tensor.detach(), wanted, msg=name)
    return narrow


class Network(nn.Module):
    """Two hidden layers, the second of 12 features, and a place where training does more."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 5)
        self.prepare()

    def prepare(self) -> None:
        """Makes what training needs."""

    def forward(self, x: Tensor) -> Tensor:
        f = F.relu(self.b(F.relu(self.a(x))))
        if self.training:
            f = self.more(f)
        return self.head(f)

    def more(self, f: Tensor) -> Tensor:
        return f


class Average(Network):
    """Keeps a moving average of its features."""

    how = "in place"

    def prepare(self) -> None:
        self.register_buffer("centre", torch.zeros(12))

    def more(self, f: Tensor) -> Tensor:
        mean = f.detach().mean(0)
        if self.how == "in place":
            self.centre.mul_(0.9).add_(mean, alpha=0.1)
        elif self.how == "data":
            self.centre.data.copy_(0.9 * self.centre.data + 0.1 * mean)
        elif self.how == "anew":
            self.centre = 0.9 * self.centre + 0.1 * mean
        elif self.how == "lerp":
            with torch.no_grad():
                self.centre.lerp_(mean, 0.1)
        elif self.how == "where":
            self.centre.copy_(torch.where(mean > self.centre, mean, self.centre))
        elif self.how == "on a value" and float(mean.abs().sum()) > 0:
            self.centre.mul_(0.9).add_(mean, alpha=0.1)
        return f


@pytest.mark.parametrize("how", ["in place", "data", "anew", "lerp", "where", "on a value"])
def test_a_moving_average_follows_its_features(how: str) -> None:
    """A buffer that only training reads and writes loses the channels that it averages."""
    model = Average()
    model.how = how
    narrow = check_training(model)
    assert (narrow.b.out_features, tuple(narrow.centre.shape)) == (6, (6,))


class Queue(Network):
    """A memory of past features with a pointer, compared with the features in training."""

    def prepare(self) -> None:
        self.register_buffer("queue", torch.randn(16, 12))
        self.register_buffer("at", torch.zeros(1, dtype=torch.long))

    def more(self, f: Tensor) -> Tensor:
        scores = f @ self.queue.detach().clone().T
        start = int(self.at)
        self.queue[start : start + len(f)] = f.detach()
        self.at[0] = (start + len(f)) % len(self.queue)
        return f + 0.1 * scores.softmax(1).amax(1, keepdim=True)


class Codes(Network):
    """Vector quantization with a code book that is averaged, not learned: van den Oord et al. 2017, appendix A.1."""

    def prepare(self) -> None:
        for name, value in (("codes", torch.randn(10, 12)), ("sums", torch.randn(10, 12)), ("counts", torch.ones(10))):
            self.register_buffer(name, value)

    def more(self, f: Tensor) -> Tensor:
        nearest = torch.cdist(f.detach(), self.codes).argmin(1)
        chosen = F.one_hot(nearest, 10).to(f.dtype)
        with torch.no_grad():
            self.counts.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
            self.sums.mul_(0.9).add_(chosen.T @ f, alpha=0.1)
            self.codes.copy_(self.sums / (self.counts[:, None] + 1e-3))
        return f + (self.codes[nearest] - f).detach()


class Copied(Network):
    """Features written over chosen rows by index_copy_, index_add_ and assignment."""

    def prepare(self) -> None:
        for name in ("copied", "added", "set_"):
            self.register_buffer(name, torch.zeros(8, 12))

    def more(self, f: Tensor) -> Tensor:
        rows = torch.arange(len(f)).flip(0)
        self.copied.index_copy_(0, rows, f.detach())
        self.added.index_add_(0, rows, f.detach())
        self.set_[rows] = f.detach()
        return f


class Teacher(Network):
    """A slow copy of a layer, moved in training."""

    def prepare(self) -> None:
        self.slow = copy.deepcopy(self.b).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        f = F.relu(self.b(x))
        if self.training:
            with torch.no_grad():
                for ours, theirs in zip(self.slow.parameters(), self.b.parameters(), strict=True):
                    ours.data = 0.9 * ours.data + 0.1 * theirs.data
                f = f + 0.1 * F.relu(self.slow(x))
        return self.head(f)


class Side(Network):
    """A second head that only training has, and returns beside the first (GoogLeNet, Szegedy et al. 2015)."""

    def prepare(self) -> None:
        self.side = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(self.a(x))
        out = self.head(F.relu(self.b(x)))
        return (out, self.side(x)) if self.training else out


class Deep(Network):
    """Blocks that training skips by chance, by Python's draws and by torch's, with dropout and noise between."""

    def prepare(self) -> None:
        self.blocks = nn.ModuleList(nn.Linear(12, 12) for _ in range(3))
        self.drop = nn.Dropout(0.5)

    def more(self, f: Tensor) -> Tensor:
        for block in self.blocks:
            if random.random() < 0.5 or torch.rand(1).item() < 0.5:  # noqa: S311 - as models draw
                continue
            kept = (torch.rand(len(f), 1) > 0.3).to(f.dtype)
            f = f + kept * F.relu(block(self.drop(f)))
        return f


class Within(nn.Module):
    """A module that looks at its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(1, 12))

    def forward(self, f: Tensor) -> Tensor:
        if self.training:
            self.largest = torch.maximum(self.largest, f.detach().amax(0, keepdim=True))
        return f / (1 + self.largest)


class Inside(Network):
    def prepare(self) -> None:
        self.within = Within()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.within(F.relu(self.b(F.relu(self.a(x))))))


class Views(Network):
    """Training looks at its features as four heads of three, and mixes them with weights of its own."""

    def prepare(self) -> None:
        self.weights = nn.Parameter(torch.randn(12, 3))

    def more(self, f: Tensor) -> Tensor:
        return f.view(len(f), -1, 3).transpose(1, 2).transpose(1, 2).reshape(len(f), -1) * (1 + self.weights.sum(1))


@pytest.mark.parametrize("build", [Queue, Codes, Copied, Teacher, Side, Inside, Views])
def test_training_of_all_kinds_goes_on_after_pruning(build: Callable[[], nn.Module]) -> None:
    """Memory, code books, slow copies, side heads, modes of submodules: two steps give what the masked model gives."""
    narrow = check_training(build())
    assert narrow.a.out_features == 8


def test_widths_of_memory_and_codes_follow() -> None:
    """Rows stay, features go."""
    assert tuple(check_training(Queue()).queue.shape) == (16, 6)
    assert tuple(check_training(Codes()).codes.shape) == (10, 6)


def test_training_by_chance_runs() -> None:
    """Skipped blocks, dropout and noise are compared under one seed where they can be; the rest has to run."""
    narrow, _, graph = halves(Deep(), SHOWN)
    assert {"a", "b"} <= set(free(graph))
    for seed in range(4):
        torch.manual_seed(seed)
        F.cross_entropy(narrow.train()(INPUTS), TARGETS).backward()


def test_what_training_alone_weighs_by_position_is_refused() -> None:
    """In eval mode nothing shows it: the trial in training does."""

    class Weighted(Network):
        def more(self, f: Tensor) -> Tensor:
            return f * (f.shape[1] / 12)

    graph = trace_structure(Weighted().eval(), SHOWN)
    assert set(free(graph)) == {"a"}
    assert locks(graph)["b"].startswith("in training: without these channels it computes something else")


def test_a_width_written_down_in_training_locks_with_the_error() -> None:
    """The code of training knows a number of features: only that group stays."""

    class Fixed(Network):
        def more(self, f: Tensor) -> Tensor:
            return f.reshape(-1, 12)

    graph = trace_structure(Fixed().eval(), SHOWN)
    assert set(free(graph)) == {"a"}
    assert "in training: RuntimeError" in locks(graph)["b"]


class Hooked(Network):
    """Keeps the gradients of its features, seen by a hook on the tensor."""

    def prepare(self) -> None:
        self.register_buffer("gradient", torch.zeros(12))

    def more(self, f: Tensor) -> Tensor:
        f.register_hook(self.note)
        return f

    def note(self, gradient: Tensor) -> None:
        self.gradient.copy_(gradient.sum(0))


class HookedModule(Network):
    """Keeps the gradients of a layer's output, seen by a hook on the module."""

    def prepare(self) -> None:
        self.b.register_buffer("gradient", torch.zeros(12))

        def note(module: nn.Module, _given: object, made: tuple[Tensor, ...]) -> None:
            module.gradient.copy_(made[0].sum(0))

        self.b.register_full_backward_hook(note)


@pytest.mark.parametrize("build", [Hooked, HookedModule])
def test_buffers_that_hooks_for_gradients_write_follow(build: Callable[[], nn.Module]) -> None:
    """Gradients have the axes of what they belong to."""
    narrow = check_training(build())
    assert narrow.b.out_features == 6


def test_a_buffer_that_only_a_backward_pass_touches_keeps_its_size() -> None:
    """A function with a derivative of its own is not looked into: what fits the buffer stays."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, f: Tensor, buffer: Tensor) -> Tensor:
            ctx.buffer = buffer
            return f.clone()

        @staticmethod
        def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
            ctx.buffer.copy_(gradient.sum(0))
            return gradient, None

    class Own(Hooked):
        def more(self, f: Tensor) -> Tensor:
            return Function.apply(f, self.gradient)

    narrow, _, graph = halves(Own(), SHOWN)
    assert set(free(graph)) == {"a"}
    F.cross_entropy(narrow.train()(INPUTS), TARGETS).backward()


def test_training_that_cannot_be_run_is_told() -> None:
    """A step that fails shows nothing: what it might have reached keeps its width, and the danger says why."""

    class Broken(Network):
        def prepare(self) -> None:
            self.extra = nn.Linear(12, 3)

        def more(self, f: Tensor) -> Tensor:
            raise RuntimeError("needs a sampler")

    graph = trace_structure(Broken().eval(), SHOWN)
    assert set(free(graph)) == {"a"}
    assert "training fails: RuntimeError: needs a sampler" in graph.unreached["extra"]


def test_the_batch_that_training_needs_is_given() -> None:
    """A step that takes no fewer samples than the loader gives is tried with all of them."""

    class Whole(Average):
        def more(self, f: Tensor) -> Tensor:
            assert len(f) == 8
            return super().more(f)

    assert tuple(check_training(Whole()).centre.shape) == (6,)


def test_trials_of_training_leave_the_model_alone() -> None:
    """Parameters and buffers that a step writes are those of copies, whatever it writes."""
    model = Teacher().eval()
    before = copy.deepcopy(model.state_dict())
    halves(model, SHOWN)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Deciding(Network):
    """In training features are reversed where numbers are large, and so is what is computed, or only one of them."""

    def __init__(self, decide: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.decide = decide

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.decide(self, x, F.relu(self.b(F.relu(self.a(x))))))


DECISIONS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "in training": lambda net, x, f: f.view(-1, 3, 4).mT.reshape(-1, 12) if net.training and x.max() > 50 else f,
    "in training, then": lambda net, x, f: (
        (f.view(-1, 3, 4).mT.reshape(-1, 12) if net.training else f * 2) if x.max() > 50 else f
    ),
    "a very value": lambda net, x, f: f.flip(1) if net.training and round(x.max().item()) == 77 else f,
}


@pytest.mark.parametrize("kind", DECISIONS)
def test_decisions_of_training_are_tried(kind: str) -> None:
    """What only a training step on other numbers does to features keeps their width; what comes before goes."""
    narrow, masked, graph = halves(Deciding(DECISIONS[kind]), SHOWN)
    assert set(free(graph)) == {"a"}
    x = torch.full((8, 6), 77.0)
    torch.testing.assert_close(narrow.train()(x), masked.train()(x))
