import copy
import inspect
import math
import pickle
import subprocess
import sys
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import get_args

import pytest
from torch import nn

from compressor import Recipe, load_checkpoint, read_onnx, stages
from compressor.budget import Budget
from compressor.checks import (
    check_calibrated,
    check_count,
    check_fraction,
    check_globs,
    check_kinds,
    check_max_drop,
    check_not_negative,
    check_one_of,
    check_positive,
    check_tuple,
    told_reasons,
)
from compressor.errors import StageError
from compressor.outputs.kinds import Classes
from compressor.packing.files import copy_reader, pack
from compressor.stages import Macs, MergeSimilar, PruneChannels
from compressor.target import Target
from compressor.workload import Workload


def message_of(check, *arguments, **named) -> str:
    with pytest.raises(ValueError, match="got") as caught:
        check(*arguments, **named)
    return str(caught.value)


@pytest.mark.parametrize(
    ("within", "good", "bad"),
    [
        ("[0, 1)", [0, 0.5, 0.999], [-0.1, 1, 1.0]),
        ("[0, 1]", [0, 0.5, 1], [-0.1, 1.1]),
        ("(0, 1)", [0.001, 0.999], [0, 1]),
        ("(0, 1]", [0.001, 1], [0, 1.001]),
    ],
)
def test_fractions_lie_in_their_interval(within, good, bad) -> None:
    """Round brackets leave the end out and square ones take it in; NaN, infinities and booleans lie nowhere."""
    for value in good:
        check_fraction(value, "remove is the fraction that goes", within=within)
    for value in (*bad, math.nan, math.inf, -math.inf, True, False, "0.5"):
        text = message_of(check_fraction, value, "remove is the fraction that goes", within=within)
        assert text.startswith(f"remove is the fraction that goes, in {within}; got {value!r}")


def test_percent_is_taken_for_a_slip() -> None:
    """50 for 0.5 is answered with 0.5; for 1, 100 and 250 no fraction comes to mind."""
    says = "remove is the fraction that goes"
    assert message_of(check_fraction, 50, says) == f"{says}, in [0, 1); got 50; did you mean 0.5?"
    assert message_of(check_fraction, 2.5, says).endswith("got 2.5; did you mean 0.025?")
    assert message_of(check_fraction, 100, says, within="(0, 1]").endswith("got 100; did you mean 1?")
    for value in (1, 100, 250, True):
        assert message_of(check_fraction, value, says).endswith(f"got {value}")


def test_a_way_out_of_its_own_ends_the_sentence() -> None:
    """Where a percentage makes no sense, the caller's hint stands instead of the question."""
    text = message_of(check_fraction, 5, "weight_decay is a factor", way_out="it is usually below 0.01")
    assert text == "weight_decay is a factor, in [0, 1); got 5; it is usually below 0.01"
    assert message_of(check_count, 0, "steps counts the steps", way_out="OneShot() has none").endswith("has none")


def test_a_drop_is_a_fraction_or_none() -> None:
    """None looks at no drop, 0.01 is a point, and who writes 1 is asked whether a point was meant."""
    check_max_drop(None)
    check_max_drop(0.01)
    says = "max_drop is a fraction (0.01 is one point of accuracy), in [0, 1)"
    assert message_of(check_max_drop, 1) == f"{says}; got 1; did you mean 0.01?"
    assert message_of(check_max_drop, "2 %") == f"{says}; got '2 %'; did you mean 0.02?"


def test_counts_are_whole_numbers() -> None:
    """3 is a count of at least 3; 2 is too few, and 2.5, True, NaN and text are no whole numbers."""
    check_count(3, "repeats counts the runs", least=3)
    check_count(0, "tail_epochs counts the epochs", least=0)
    assert message_of(check_count, 2, "repeats counts the runs", least=3) == (
        "repeats counts the runs, at least 3; got 2"
    )
    for value in (2.5, 4.0, True, math.nan, "4"):
        assert message_of(check_count, value, "repeats counts the runs") == (
            f"repeats counts the runs, a whole number, at least 1; got {value!r}"
        )


def test_positive_is_finite_and_above_0() -> None:
    """0.1 and 7 are; 0, -1, NaN, infinity and True are not."""
    check_positive(0.1, "ms is the time of one call")
    check_positive(7, "ms is the time of one call")
    for value in (0, -1.0, math.nan, math.inf, True):
        assert message_of(check_positive, value, "ms is the time of one call") == (
            f"ms is the time of one call, above 0; got {value!r}"
        )


def test_not_negative_takes_0() -> None:
    """0 is; -0.5, NaN, infinity and False are not."""
    check_not_negative(0, "threshold is a weight")
    for value in (-0.5, math.nan, math.inf, False):
        assert message_of(check_not_negative, value, "threshold is a weight") == (
            f"threshold is a weight, at least 0; got {value!r}"
        )


def test_a_choice_is_told_with_all_there_are() -> None:
    """Another word than those there are is answered with them."""
    check_one_of("int8", "form is what ships", ("float", "int8"))
    assert message_of(check_one_of, "int4", "form is what ships", ("float", "int8")) == (
        "form is what ships, one of float, int8; got 'int4'"
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: load_checkpoint(None, nn.Identity),
        lambda: Recipe.load(3),
        lambda: pack(None),
        lambda: copy_reader(None),
        lambda: read_onnx(b"model.onnx"),
    ],
)
def test_what_is_no_path_is_told_with_what_a_path_is(call) -> None:
    with pytest.raises(ValueError, match=r"a str or a pathlib\.Path; got \w+$"):
        call()


def test_a_string_is_no_tuple() -> None:
    """Python would read 'fc' as the patterns 'f' and 'c'; the tuple that was meant is spelled out."""
    check_globs(("fc", "layer1.*"), "ignore", least=1)
    check_globs((), "ignore")
    assert message_of(check_globs, "fc", "ignore") == (
        "ignore is a tuple of globs such as ('layer1.*',), got the string 'fc'; write ('fc',)"
    )
    assert message_of(check_globs, (), "ignore", least=1) == (
        "ignore is a tuple of globs such as ('layer1.*',), at least 1; got ()"
    )
    assert message_of(check_tuple, "fc", "features is a tuple of module names").startswith("features is a tuple")


def test_empty_calibration_data_is_refused() -> None:
    """A stage that saw no sample says so instead of taking ranges from nothing."""
    check_calibrated([1])
    with pytest.raises(StageError, match="calibration data is empty; give the workload at least one batch"):
        check_calibrated([])


def test_checks_load_nothing_heavy() -> None:
    """The command line may check an option before torch is loaded."""
    code = "import sys, compressor.checks; print(sorted({'torch', 'onnx', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@dataclass(frozen=True)
class One:
    """A value object."""

    part: float = 0.5


@dataclass(frozen=True)
class Two:
    """Another."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Fields of each sort: value objects, perhaps None, and what else may stand there."""

    way: One | Two = field(default_factory=One)
    maybe: One | Two | None = None
    free: One | float = 1.0
    count: int = 1


@pytest.mark.parametrize("name", ["way", "maybe"])
@pytest.mark.parametrize("value", ["one", 0.5, True, One, {"part": 0.5}, (One(),), Settings()], ids=repr)
def test_value_objects_are_no_names_numbers_or_classes(name, value) -> None:
    """What is wanted is written out, and so is what was got."""
    message = message_of(check_kinds, Settings(**{name: value}))
    assert message.startswith(f"{name} is one of One(), Two(), of compressor.stages; got ")
    assert message.endswith("got the class One" if value is One else f"got {value!r}")


def test_value_objects_pass_and_other_fields_are_not_looked_at() -> None:
    """A class that derives from one of them counts as it; None where the field says so alone."""

    class Derived(One):
        pass

    for good in (One(), Two(), Derived()):
        check_kinds(Settings(way=good, maybe=good, free="x", count="y"))
    check_kinds(Settings())
    assert message_of(check_kinds, Settings(way=None)).endswith("got None")


def _fields_of_value_objects() -> list[tuple[type, str]]:
    return [
        (kind, item.name)
        for kind in stages.BUILT_IN
        for item in fields(kind)
        if item.init and all(is_dataclass(part) or part is type(None) for part in get_args(item.type) or (item.type,))
    ]


@pytest.mark.parametrize(("kind", "name"), _fields_of_value_objects(), ids=str)
def test_every_built_in_stage_refuses_them_where_they_are_written(kind, name) -> None:
    """Not in the middle of a run, by an AttributeError."""
    given = {"target": Macs(0.5), "remove": 0.5, "sparsity": 0.5}
    needed = {key: value for key, value in given.items() if key in {item.name for item in fields(kind)}}
    if kind in {PruneChannels, MergeSimilar}:
        needed.pop("remove" if name == "target" else "target", None)
    for value in ("nothing", 0.5, kind):
        with pytest.raises((ValueError, TypeError), match=name):
            kind(**{**needed, name: value})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: stages.FineTune(learning_rate=0.1),
            (
                "FineTune has no 'learning_rate': the rate is the optimizer's; write optimizer=SGD(rate=0.1) or "
                "optimizer=AdamW(rate=0.002), of compressor.stages, or leave it out to have it found"
            ),
        ),
        (
            lambda: stages.QuantizationAwareTraining(learning_rate="auto"),
            (
                "QuantizationAwareTraining has no 'learning_rate': the rate is the optimizer's; write "
                "optimizer=SGD(rate=0.01) or optimizer=AdamW(rate=0.0002), of compressor.stages, or leave it out to "
                "have it found"
            ),
        ),
        (lambda: stages.Distill(epoch=3), "Distill has no 'epoch'; did you mean 'epochs'? (it has epochs, steps, "),
        (lambda: stages.PruneChannels(learning_rate=1), "PruneChannels has no 'learning_rate' (it has remove, "),
        (lambda: stages.SGD(rate=1.0, nesterov=True), "SGD has no 'nesterov' (it has rate, momentum)"),
        (lambda: stages.Global(rate=1.0), "Global has no 'rate' (it has no parameters)"),
        (lambda: stages.FineTune(3), "FineTune takes its settings by name; write FineTune(epochs=3)"),
        (lambda: Budget(drop=0.1), "Budget has no 'drop'; did you mean 'max_drop'? (it has "),
        (lambda: Target(thread=2), "Target has no 'thread'; did you mean 'threads'? (it has "),
        (lambda: Workload(metrics=None), "Workload has no 'metrics'; did you mean 'metric'? (it has "),
        (lambda: Classes(axes=1), "Classes has no 'axes'; did you mean 'axis'? (it has axis, ignored, "),
    ],
)
def test_settings_that_are_not_there_are_told_with_those_that_are(make, says: str) -> None:
    """Python's own words name neither the nearest nor the others."""
    with pytest.raises(TypeError) as caught:
        make()
    assert str(caught.value).startswith(says)


def test_what_else_is_wrong_with_a_call_is_told_as_before() -> None:
    """A setting that is missing, one of the wrong kind, and errors of the checks; signatures and copies stay."""
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'rate'"):
        stages.SGD()
    with pytest.raises(ValueError, match="epochs counts"):
        stages.FineTune(epochs=0)
    assert "epochs" in inspect.signature(stages.FineTune).parameters
    once = stages.FineTune(epochs=2)
    assert pickle.loads(pickle.dumps(once)) == copy.deepcopy(once) == replace(stages.FineTune(), epochs=2)  # noqa: S301 - its own bytes


def test_all_that_a_recipe_may_name_explains_its_settings() -> None:
    """Every stage and value object, whatever is added to the catalogue."""
    for name in stages.__all__[:-1]:
        with pytest.raises(TypeError, match=f"{name} has no 'no_such_thing'"):
            getattr(stages, name)(no_such_thing=1)


def test_reasons_are_told_once_with_all_they_hold_for():
    """Layers of one reason stand together, at the place of the first; of many four are named."""
    assert told_reasons({"a": "it is frozen", "b": "softmax runs over it", "c": "it is frozen"}) == (
        "a, c: it is frozen; b: softmax runs over it"
    )
    assert told_reasons((f"l{number}", "thin") for number in range(7)) == "l0, l1, l2, l3 and 3 others: thin"
    assert told_reasons([(f"l{number}", "thin") for number in range(5)]) == "l0, l1, l2, l3, l4: thin"
    assert told_reasons({}) == ""
