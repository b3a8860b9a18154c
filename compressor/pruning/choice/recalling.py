"""What blocks computed for a batch, handed out again instead of computed: leaving out one changes none before it."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from compressor.machine import free_memory_bytes

# The part of the free memory that outputs may take.
_MEMORY_SHARE = 0.25
_Output = Tensor | tuple[Tensor, ...]


class Recalled:
    """The outputs of the modules `names` of `model` for one batch, in the order in which they ran.

    Blocks that ran several times, or gave anything but tensors, are computed as ever; so are the later ones where the
    outputs would take too much memory.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self._modules = {name: model.get_submodule(name) for name in names}
        self._outputs: dict[str, _Output | None] = {}
        self._left = _MEMORY_SHARE * free_memory_bytes()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """A stretch with one call of the model, whose outputs are kept."""

        def recorder(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                self._outputs[name] = None if name in self._outputs else self._kept(output)
                return output

            return record

        with ExitStack() as stack:
            for name, module in self._modules.items():
                stack.enter_context(_with_forward(module, recorder(name, module.forward)))
            yield

    @property
    def last_first(self) -> list[str]:
        """The modules that ran, the last one first: leaving out one leaves those that follow here as they were."""
        return list(reversed(self._outputs))

    @contextmanager
    def replaying(self, *, before: str | None) -> Iterator[None]:
        """A stretch in which the modules that ran ahead of `before`, all of them for None, give what they gave.

        None does where `before` did not run itself.
        """
        ran = list(self._outputs)
        end = len(ran) if before is None else ran.index(before) if before in self._outputs else 0
        with ExitStack() as stack:
            for name in ran[:end]:
                kept = self._outputs[name]
                if kept is not None:
                    stack.enter_context(_with_forward(self._modules[name], lambda *_, kept=kept, **__: _copied(kept)))
            yield

    def _kept(self, output: Any) -> _Output | None:
        tensors = output if isinstance(output, tuple) else (output,)
        # A tuple of a class of its own has names that a copy would lack.
        if type(output) not in (Tensor, tuple) or not all(type(each) is Tensor for each in tensors):
            return None
        self._left -= sum(tensor.nbytes for tensor in tensors)
        # What follows may write into it.
        return _copied(output) if self._left > 0 else None


def _copied(output: _Output) -> _Output:
    return tuple(tensor.clone() for tensor in output) if isinstance(output, tuple) else output.clone()


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """`module` computing `forward`, whatever else is looked up in it staying its own."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own
