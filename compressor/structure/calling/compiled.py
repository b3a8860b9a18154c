"""Models that torch compiles a part of at every call (torch.cond, torch.while_loop), watched all the same."""

import re

import torch

_COMPILER = "torch._dynamo"
_WHOLE_FUNCTIONS = re.compile(r"Higher ?Order ?Operator:? (?:torch\.)?(\w+)")


def compiles_again(error: BaseException) -> bool:
    """Whether `error` came up while torch compiled. It then forgets what it has, and compiles again at the next call.

    While a mode watches operators it cannot: it keeps code that fails from then on, where nobody watches too.
    """
    chain = _chain(error)
    if not any(type(each).__module__.startswith(_COMPILER) or _blamed(each) for each in chain):
        return False
    torch.compiler.reset()
    return True


def why_not_followed(error: BaseException) -> str:
    """Why a model that raised `error` could not be watched, in a sentence; "" where torch did not compile."""
    if not compiles_again(error):
        return ""
    named = [*filter(None, map(_blamed, _chain(error)))]
    operator = f"torch's operator {named[0]}" if named else "an operator of torch that compiles, such as torch.cond,"
    return f"{operator} takes whole functions, and what happens inside them is not followed"


def _blamed(error: BaseException) -> str:
    """The operator that `error` names, "" where it names none."""
    try:
        found = _WHOLE_FUNCTIONS.search(str(error))
    except Exception:  # noqa: BLE001 - an error of somebody's may not even say what it is
        return ""
    return found[1] if found else ""


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and not any(error is known for known in found):
        found.append(error)
        error = error.__cause__ or error.__context__
    return found
