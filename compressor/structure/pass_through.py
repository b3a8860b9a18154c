"""The module that stands where a block was taken out: it hands back what it is given."""

from typing import Any

from torch import nn


class PassThrough(nn.Identity):
    """Hands back its first argument and takes whatever else the block was given.

    `as_tuple` gives a tuple of one, for callers that unpack what the block returned; `with_state` gives the pair that
    recurrent layers return, with None for the last state, which nobody may look at any more.
    """

    def __init__(self, *, as_tuple: bool = False, with_state: bool = False) -> None:
        super().__init__()
        self.as_tuple, self.with_state = as_tuple, with_state

    def forward(self, input: Any, *_args: Any, **_kwargs: Any) -> Any:  # noqa: A002 - the name nn.Identity gives it
        if self.with_state:
            return input, None
        return (input,) if self.as_tuple else input
