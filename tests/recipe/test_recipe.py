"""Recipes: YAML to stages and back, and every mistake told at once with its line."""

import math
import os
import re
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import compressor.recipe.recipe
from compressor.budget import Budget
from compressor.errors import LONGEST_REASON, RecipeError, bounded
from compressor.recipe.recipe import Recipe, shipped_recipes
from compressor.recipe.text import parse, parse_value, to_yaml
from compressor.stage import Effect
from workbench import ROOT


@dataclass(frozen=True, kw_only=True)
class PerTensor:
    """One scale."""


@dataclass(frozen=True, kw_only=True)
class PerChannel:
    """A scale for every channel."""

    axis: int = 0


@dataclass(frozen=True, kw_only=True)
class Symmetric:
    """Zero in the middle."""

    bits: int = 8
    granularity: PerTensor | PerChannel = field(default_factory=PerChannel)


@dataclass(frozen=True, kw_only=True)
class Asymmetric:
    """Zero anywhere."""

    bits: int = 8


@dataclass(frozen=True, kw_only=True)
class Encode:
    """Stores weights in fewer bits."""

    effect: ClassVar[Effect] = Effect.ENCODING
    weights: Symmetric | Asymmetric = field(default_factory=Symmetric)
    skip: tuple[str, ...] = ()
    limit: float | None = None
    mix: float | PerTensor | None = None
    copy: bool = False  # pydantic's models have a method of this name

    def apply(self, model, workload, context):
        return model


@dataclass(frozen=True, kw_only=True)
class Teach:
    """Trains."""

    effect: ClassVar[Effect] = Effect.VALUES
    epochs: int
    learning_rate: float = 0.01
    mode: Literal["fast", "slow"] = "fast"
    betas: tuple[float, float] = (0.9, 0.99)
    teacher: nn.Module | None = field(default=None, repr=False, compare=False)

    def __post_init__(self):
        if self.epochs < 1:
            raise ValueError(f"epochs counts passes over the data, at least 1; got {self.epochs}")

    def apply(self, model, workload, context):
        return model


@pytest.fixture(autouse=True)
def _two_stages(monkeypatch, request):
    if "real_catalogue" not in request.keywords.get("usefixtures", pytest.mark.usefixtures()).args:
        monkeypatch.setattr(compressor.recipe.recipe, "catalogue", lambda: {"encode": Encode, "teach": Teach})


@pytest.fixture
def real_catalogue():
    """The stages as installed."""


def errors_of(text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        Recipe.loads(textwrap.dedent(text), source="r.yaml", overrides=overrides)
    assert str(caught.value) == "\n".join(caught.value.errors)
    return caught.value.errors


KEYS = ["name", "stages", "budget", "encode", "teach", "epochs", "weights", "symmetric"]
GOOD = """\
# Small and fast.
# For tests.
name: mine
seed: 3
budget: {max_drop: 0.02}
threads: 2
stages:
  - teach: {epochs: 8, learning_rate: 1e-3, betas: [0.5, 1]}
  - encode
"""


def test_yaml_becomes_stages() -> None:
    """Every key of a recipe arrives in the object, 1e-3 is a number and the leading comment is the description."""
    assert Recipe.loads(GOOD) == Recipe(
        name="mine",
        description="Small and fast.\nFor tests.",
        seed=3,
        budget=Budget(max_drop=0.02),
        threads=2,
        stages=(Teach(epochs=8, learning_rate=0.001, betas=(0.5, 1.0)), Encode()),
    )


@pytest.mark.parametrize(
    "written", ["- encode", "- encode:", "- encode: {}", "- {encode: {weights: symmetric}}", "- encode: {copy: false}"]
)
def test_forms_of_a_stage_without_parameters(written: str) -> None:
    """A bare name, an empty value and an empty mapping are one and the same stage."""
    assert Recipe.loads(f"stages:\n  {written}\n").stages == (Encode(),)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("asymmetric", Asymmetric()),
        ("{asymmetric: {bits: 4}}", Asymmetric(bits=4)),
        ("{symmetric: {granularity: per_tensor}}", Symmetric(granularity=PerTensor())),
        (
            "{symmetric: {bits: 4, granularity: {per_channel: {axis: 1}}}}",
            Symmetric(bits=4, granularity=PerChannel(axis=1)),
        ),
    ],
)
def test_value_objects(written: str, value: Symmetric | Asymmetric) -> None:
    """Value objects are written by the names of their classes, nested as deep as the type hints go."""
    recipe = Recipe.loads(f"stages: [encode: {{weights: {written}}}]")
    assert recipe.stages == (Encode(weights=value),)
    assert Recipe.loads(recipe.dump()) == Recipe(stages=recipe.stages)


def test_a_field_of_numbers_or_objects() -> None:
    """A union of a number, a value object and null takes each of them."""
    text = "stages: [encode: {mix: 0.5}, encode: {mix: per_tensor}, encode: {mix: null}]"
    assert [stage.mix for stage in Recipe.loads(text).stages] == [0.5, PerTensor(), None]


def test_all_errors_at_once_with_lines() -> None:
    """Ten mistakes of every kind give ten messages, each with its line and the nearest name."""
    assert errors_of(
        """\
        nmae: x
        seed: -1
        threads: true
        budget: {max_drop: 50, maxdrop: 1}
        stages:
          - teahc: {epochs: 3}
          - teach: {epoch: 3}
          - encode:
              weights: {symetric: {}}
              skip: abc
          - teach:
              mode: slowly
              epochs: 0.5
        """
    ) == [
        (
            "r.yaml:1: a recipe has no 'nmae'; did you mean 'name'? "
            "(it has name, description, seed, batch_size, threads, budget, evaluations, stages)"
        ),
        "r.yaml:2: seed must be at least 0, got -1",
        "r.yaml:3: threads must be a whole number, got True",
        (
            "r.yaml:4: budget has no 'maxdrop'; did you mean 'max_drop'? (it has max_drop, min_others_db, not_slower, "
            "min_speedup, max_latency_ms, max_size_bytes)"
        ),
        "r.yaml:6: unknown stage 'teahc'; did you mean 'teach'? (known: encode, teach)",
        "r.yaml:7: teach has no 'epoch'; did you mean 'epochs'? (it has epochs, learning_rate, mode, betas)",
        "r.yaml:7: teach needs 'epochs'; its keys: epochs, learning_rate, mode, betas",
        (
            "r.yaml:9: unknown value for stages.2.encode.weights 'symetric'; did you mean 'symmetric'? "
            "(known: symmetric, asymmetric)"
        ),
        "r.yaml:10: stages.2.encode.skip must be a list, got 'abc'; write skip: [abc], or a line with a dash for each",
        "r.yaml:12: stages.3.teach.mode must be 'fast' or 'slow', got 'slowly'",
        "r.yaml:13: stages.3.teach.epochs must be a whole number, got 0.5",
    ]


def test_a_stages_own_refusal_has_the_line_of_its_key() -> None:
    """What a dataclass refuses is told in its own words, at the line of the key that the words begin with."""
    (error,) = errors_of("stages:\n  - teach:\n      learning_rate: 1\n      epochs: 0\n")
    assert error == "r.yaml:4: epochs counts passes over the data, at least 1; got 0"


def test_fifty_percent_is_refused_with_a_hint() -> None:
    """A percentage where a fraction belongs is refused with the fraction that was probably meant."""
    (error,) = errors_of("budget: {max_drop: 50}\nstages: [encode]\n")
    assert error.startswith("r.yaml:1: max_drop is a fraction")
    assert error.endswith("did you mean 0.5?")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml:1: the recipe is empty; it needs at least `stages:` with one stage"),
        ("- encode\n", "r.yaml:1: a recipe is a mapping with the key 'stages', got list"),
        ("name: x\n", "r.yaml:1: the recipe needs 'stages'"),
        ("stages: []\n", "r.yaml:1: stages is empty; give at least 1"),
        (
            "stages: {encode: {}}\n",
            (
                "r.yaml:1: stages must be a list, got a mapping with 'encode'; write stages: [encode], or a line with "
                "a dash for each"
            ),
        ),
        ("stages: [encode]\nname: ../up\n", ("r.yaml:2: name must be one word of letters, digits, dots, dashes and "
         "underscores, got '../up'")),
        ("stages:\n\t- encode\n", "r.yaml:2: a tab in the indentation; YAML wants spaces"),
        ("stages: [encode]\nseed: 1\nseed: 2\n", ("r.yaml:3: duplicate key 'seed', first given in line 2; keep one of "
         "the two")),
        ("stages: [encode]\nname: !!python/object/apply:os.system [id]\n", ("r.yaml:2: the tag "
         "!!python/object/apply:os.system is refused: a recipe is plain data and never builds objects")),
        ("stages: [encode]\n<<: {seed: 1}\n", "r.yaml:2: merge keys (<<) are refused; write the values out"),
        ("stages:\n  - encode:\n    skip: [a]\n", ("r.yaml:2: stages.0 must name one stage, `name` or "
         "`name: {parameters}`, got a mapping with 'encode', 'skip'; indent its parameters below its name "
         "(known: encode, teach)")),
        ("stages: [{teach: {epochs: 1, teacher: resnet}}]\n", ("r.yaml:1: teach.teacher is an object of Python and "
         "cannot be set in a recipe; use the Python API for it")),
        ("stages: [encode: {limit: .nan}]\n", "r.yaml:1: stages.0.encode.limit must be a finite number, got nan"),
        ("stages: [encode: {limit: yes}]\n", "r.yaml:1: stages.0.encode.limit must be a number, got 'yes'"),
        ("stages: [encode: {limit: true}]\n", "r.yaml:1: stages.0.encode.limit must be a number, got True"),
        ("stages: [encode: 5]\n", "r.yaml:1: stages.0.encode must be a mapping (key: value), got 5"),
        ("stages: [7]\n", "r.yaml:1: stages.0 must be the name of a stage, got 7 (known: encode, teach)"),
    ],
)  # fmt: skip
def test_what_is_no_recipe(text: str, message: str) -> None:
    """Each malformed file is refused with one sentence: where, what was wanted, what was got."""
    assert message in errors_of(text)


def test_tag_in_a_recipe_runs_nothing(tmp_path: Path) -> None:
    """A tag that asks Python to run a command leaves no trace of having done so."""
    trace = tmp_path / "trace"
    errors_of(f"name: !!python/object/apply:os.system ['touch {trace}']\nstages: [encode]\n")
    assert not trace.exists()


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcde", "bcdef", strict=True)),
        "a: &a [*a]\n",
        "[" * 50_000,
        "stages:\n" + "- encode\n" * 50_000,
        "\n".join("  " * depth + "a:" for depth in range(300)),
    ],
    ids=["aliases", "loop", "brackets", "large", "deep"],
)
def test_bombs_are_refused_at_once(text: str) -> None:
    """Bombs of aliases, endless nesting and huge texts are refused within two seconds of work."""
    started = time.process_time()
    assert errors_of(text)
    assert time.process_time() - started < 2


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """A file of ten megabytes is refused by its size."""
    path = tmp_path / "large.yaml"
    path.write_text("# " + "x" * 10_000_000)
    with pytest.raises(RecipeError, match="at most 100000 bytes, this file has 10000002"):
        Recipe.load(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    """Missing files, unknown names and bytes that are no text are RecipeErrors that name them."""
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: \xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        Recipe.load(binary)
    with pytest.raises(RecipeError, match=r"missing\.yaml:1: no such file"):
        Recipe.load(tmp_path / "missing.yaml")
    with pytest.raises(RecipeError, match="no recipe 'in8'; did you mean 'int8'"):
        Recipe.load("in8")


def test_a_recipe_is_a_regular_file_of_a_name_that_can_be(tmp_path: Path) -> None:
    """Names that are too long, have a null, lead below a file, or mean a folder or a pipe are refused, with why."""
    file = tmp_path / "file.yaml"
    file.write_text("stages: [quantize]\n")
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    for source, told in {
        "x" * 5000: "File name too long",
        str(tmp_path / ("x" * 300 + ".yaml")): "File name too long",
        "a\0b": "null",
        str(file / "inner.yaml"): "Not a directory",
        str(tmp_path): "is a folder",
        str(pipe): "is no regular file",
        "": "no recipe ''",
    }.items():
        with pytest.raises(RecipeError, match=told) as caught:
            Recipe.load(source)
        assert len(str(caught.value)) < 1000


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    """What editors on Windows write is a recipe; UTF-16 is none."""
    path = tmp_path / "windows.yaml"
    text = "# For phones.\r\nseed: 3\r\nstages: [encode]\r\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    recipe = Recipe.load(path)
    assert (recipe.seed, recipe.description) == (3, "For phones.")
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('!!float ""', "'' is not a value of type float"),
        ("!!float 1:30", "'1:30' is not a value of type float"),
        ("!!bool maybe", "'maybe' is not a value of type bool"),
        ("!!bool yes", "'yes' is not a value of type bool"),
        ("!!int 1_000", "'1_000' is not a value of type int"),
        ('!!int ""', "'' is not a value of type int"),
        ("!!null nothing", "'nothing' is not a value of type null"),
        ("!!seq x", "the tag !!seq does not fit the scalar behind it"),
        ("!!str [a]", "the tag !!str does not fit the sequence behind it"),
        ("!!int {a: 1}", "the tag !!int does not fit the mapping behind it"),
        ("!!timestamp 2001-01-01", "the tag !!timestamp is refused"),
        ("!!binary aGk=", "the tag !!binary is refused"),
        ("!!set {x}", "the tag !!set is refused"),
        ("!!omap [x: 1]", "the tag !!omap is refused"),
        ("!mine x", "the tag !mine is refused"),
        ("{!!binary aGk=: 1}", "the tag !!binary is refused"),
        ("9" * 30, "a whole number is at most 18446744073709551615"),
        ("-" + "9" * 5000, "a whole number is at most 18446744073709551615"),
    ],
)
def test_odd_tags_and_values_are_refused_in_the_file_and_by_set(value: str, told: str) -> None:
    """A value that its tag does not fit, in a file or behind --set, is an error of the recipe that says so."""
    assert any(line.startswith(f"r.yaml:2: {told}") for line in errors_of(f"stages: [encode]\nseed: {value}\n"))
    label = f"--set {bounded(f'seed={value}', LONGEST_REASON)}"
    assert any(line.startswith(f"{label}: {told}") for line in errors_of(GOOD, f"seed={value}"))


def test_tags_that_say_what_is_there_are_taken() -> None:
    """Standard tags on fitting text give plain values."""
    assert parse_value("!!float 3") == 3.0
    assert parse_value("[!!bool TRUE, !!null '', !!str 5, -.inf]") == [True, None, "5", -math.inf]
    assert math.isnan(parse_value("!!float .nan"))


def test_overrides() -> None:
    """Overrides replace, add and remove values, with the stage's name in the path or without."""
    recipe = Recipe.loads(GOOD).with_overrides(
        [
            "seed=4",
            "budget.max_drop=0.1",
            "stages.0.epochs=2",
            "stages.0.teach.learning_rate=1e-5",
            "stages.1.weights.asymmetric.bits=4",
            "stages.1.skip=[a, b]",
        ]
    )
    assert (recipe.seed, recipe.budget) == (4, Budget(max_drop=0.1))
    assert recipe.stages == (
        Teach(epochs=2, learning_rate=1e-5, betas=(0.5, 1.0)),
        Encode(weights=Asymmetric(bits=4), skip=("a", "b")),
    )
    assert recipe.with_overrides(["budget=null", "stages.1.weights.bits=2"]) == Recipe(
        name="mine",
        description=recipe.description,
        seed=4,
        threads=2,
        stages=(recipe.stages[0], Encode(weights=Asymmetric(bits=2), skip=("a", "b"))),
    )
    assert recipe.with_overrides([]) == recipe


def test_an_override_can_give_what_the_file_lacks() -> None:
    """Overrides come before validation: a recipe with a required value left open is made whole by one."""
    assert Recipe.loads("stages: [teach]", overrides=["stages.0.epochs=5"]).stages == (Teach(epochs=5),)
    assert Recipe.loads("stages: [encode]", overrides=["budget.max_drop=0"]).budget == Budget(max_drop=0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "an override is path=value, such as stages.0.remove=0.3 or seed=3"),
        ("stages.2.epochs=1", "there is no stage '2'; the recipe has 2, counted from 0"),
        ("stages.0.epochs=0", "epochs counts passes over the data, at least 1; got 0"),
        ("stages.0.epochs=many", "stages.0.teach.epochs must be a whole number, got 'many'"),
        ("stages.0.epoks=1", "teach has no 'epoks'; did you mean 'epochs'?"),
        ("stages.1.wieghts.symmetric.bits=4", "encode has no 'wieghts'; did you mean 'weights'?"),
        ("sed=1", "a recipe has no 'sed'; did you mean 'seed'?"),
        ("seed=[1", "'[1' is not a YAML value"),
        ("a." * 3000 + "b=1", "the path has 3001 keys"),
        ("stages.²=1", "there is no stage '²'"),
        ("stages." + "9" * 5000 + ".epochs=1", "there is no stage '999"),
        ("seed=!!python/name:os.system", "the tag !!python/name:os.system is refused"),
    ],
)
def test_a_wrong_override_is_named(override: str, message: str) -> None:
    """The error of an override names it instead of a line."""
    (error,) = errors_of(GOOD, override)
    assert error.startswith(f"--set {bounded(override, LONGEST_REASON)}: {message}")


def test_round_trip_of_a_recipe() -> None:
    """`loads(dump(recipe))` is the recipe, and the text repeats no default."""
    recipe = Recipe.loads(GOOD)
    assert Recipe.loads(recipe.dump()) == recipe
    assert recipe.dump() == textwrap.dedent(
        """\
        # Small and fast.
        # For tests.
        name: mine
        seed: 3
        threads: 2
        budget: {max_drop: 0.02}
        stages:
        - teach:
            epochs: 8
            learning_rate: 0.001
            betas: [0.5, 1.0]
        - encode
        """
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    description=st.text(max_size=30),
    seed=st.integers(min_value=0, max_value=2**63),
    rate=st.floats(allow_nan=False, allow_infinity=False),
    skip=st.lists(
        st.text(max_size=12) | st.sampled_from(["1e3", "yes", "~", "<<", "0x1", "010", "é\x85", "#"]), max_size=3
    ),
    weights=st.sampled_from([Symmetric(), Asymmetric(bits=3), Symmetric(granularity=PerTensor())]),
)
def test_round_trip_of_any_values(description, seed, rate, skip, weights) -> None:
    """Whatever text and numbers a recipe holds come back as they were."""
    recipe = Recipe(
        name="x",
        description=description,
        seed=seed,
        stages=(Teach(epochs=1, learning_rate=rate), Encode(weights=weights, skip=tuple(skip))),
    )
    assert Recipe.loads(recipe.dump()) == recipe


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
        max_leaves=12,
    )
)
def test_any_yaml_is_a_recipe_or_a_recipe_error(data) -> None:
    """Arbitrary YAML never ends in anything but a recipe or a RecipeError that names the file or the line."""
    try:
        assert Recipe.loads(to_yaml(data), source="r.yaml").stages
    except RecipeError as error:
        errors = error.errors
    else:
        return
    assert all(line.startswith("r.yaml:") for line in errors)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab:-[]{}&*!#\t\n '\"|>%?,<1.", max_size=40))
def test_any_text_is_a_recipe_or_a_recipe_error(text: str) -> None:
    """Arbitrary text never ends in anything but a recipe or a RecipeError."""
    with pytest.raises(RecipeError):
        Recipe.loads(text)


def test_what_a_recipe_cannot_hold_is_not_written() -> None:
    """A teacher module and a stage outside of the catalogue are refused when a recipe is written."""

    @dataclass(frozen=True, kw_only=True)
    class Foreign:
        effect: ClassVar[Effect] = Effect.VALUES

        def apply(self, model, workload, context):
            return model

    with pytest.raises(ValueError, match=r"teach\.teacher holds a Identity"):
        Recipe(stages=(Teach(epochs=1, teacher=nn.Identity()),)).dump()
    with pytest.raises(ValueError, match="Foreign is not in the catalogue"):
        Recipe(stages=(Foreign(),)).dump()


def test_yaml_scalars_have_no_surprises() -> None:
    """Numbers are those that people mean: 1e-3 is one, on, 010 and 1:30 are not something else."""
    assert parse("a: 1e-3\nb: on\nc: 010\nd: 1:30\ne: 2020-01-01\nf: .5\ng: ~\n", "r").data == {
        "a": 0.001, "b": "on", "c": 10, "d": "1:30", "e": "2020-01-01", "f": 0.5, "g": None,
    }  # fmt: skip
    assert parse_value("[a, 1]") == ["a", 1]


def test_the_json_schema_names_stages_and_keys() -> None:
    """The schema for editors knows the stages and refuses unknown keys."""
    schema = Recipe.json_schema()
    assert schema["additionalProperties"] is False
    assert schema["required"] == ["stages"]
    assert schema["$defs"]["Teach"]["required"] == ["epochs"]
    assert set(schema["$defs"]["Encode"]["properties"]) == {"weights", "skip", "limit", "mix", "copy"}


def test_target_comes_from_the_caller_then_the_recipe() -> None:
    """Threads and batch size are the caller's, else the recipe's, else one."""
    recipe = Recipe(stages=(Encode(),), threads=2)
    assert (recipe.target().threads, recipe.target().batch_size) == (2, 1)
    assert (recipe.target(threads=1).threads, recipe.target(batch_size=8).batch_size) == (1, 8)


@pytest.mark.usefixtures("real_catalogue")
@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
def test_shipped_recipes(name: str) -> None:
    """Every shipped recipe loads by its name, says what it is for, has a budget and comes back from its own text.

    One that leaves a student open does with one.
    """
    student = "workbench.tiny:TinyResNet" if Recipe.asks_for_student(name) else None
    recipe = Recipe.load(name, student=student)
    assert recipe.name == name
    assert recipe.description
    assert recipe.budget is not None
    assert recipe.budget.max_drop in {0.005, 0.02}
    assert Recipe.loads(recipe.dump()) == recipe
    assert name in shipped_recipes()


@pytest.mark.usefixtures("real_catalogue")
def test_what_is_advised_for_an_old_rate_is_accepted() -> None:
    """Both forms of the optimizer that the error of `learning_rate` writes out are recipes."""
    (error,) = errors_of("stages: [distill: {learning_rate: 0.05}]")
    for written in re.findall(r"\{\w+: \{rate: [\d.]+\}\}", error):
        assert Recipe.loads(f"stages: [distill: {{optimizer: {written}}}]").stages
    assert len(re.findall(r"\{\w+: \{rate: [\d.]+\}\}", error)) == 2


@pytest.mark.usefixtures("real_catalogue")
def test_pipelines_and_recipes_become_each_other() -> None:
    """A pipeline made from a recipe gives the recipe back."""
    from compressor.running.pipeline import Pipeline

    recipe = Recipe.load("drop_blocks_distill_int8")
    pipeline = Pipeline.from_recipe(recipe)
    assert Recipe.from_pipeline(pipeline, name=recipe.name, description=recipe.description) == recipe


def test_packaging_lists_every_package() -> None:
    """Each folder with Python files is in the list of packages, and the recipes travel with them."""
    import tomllib

    root = Path(compressor.__file__).parent.parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {path.parent.relative_to(root) for path in (root / "compressor").rglob("*.py")}
    found = {".".join(folder.parts) for folder in folders}
    assert set(listed) == found | {"compressor.recipes"}


@pytest.mark.parametrize(
    "line", ["seed: 99999999999999999999999999", "seed: !!python/name:os.system 3", "seed: !!float ''"]
)
def test_a_refused_value_is_told_of_once(line: str) -> None:
    """What was refused reads as nothing; that it is missing would be a second, false error."""
    (error,) = errors_of(f"{line}\nstages: [{{teach: {{epochs: 2}}}}]\n")
    assert "got nothing" not in error
