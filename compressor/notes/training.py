"""What is told of a training: its epochs, its teacher, and what reached zero."""

from collections.abc import Mapping
from dataclasses import dataclass

from compressor.estimate import Estimate
from compressor.notes.note import Note


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """One epoch: mean training loss, validation score, the rate of its last batch, wall time with validation."""

    epoch: int
    loss: float | None
    score: float | None
    learning_rate: float | None
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class Epochs(Note):
    """The epochs of a training, and the number of the one that was kept where it is not the last."""

    epochs: tuple[Epoch, ...]
    best_epoch: int | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """How one training went: by which optimizer, in which number format, why so, and what came of it.

    `rate` is the highest that was used, at the peak of the schedule, and `rate_from` where it comes from in words.
    `inner_layers` is the number format in which they were computed, and `why` the reason for it.

    `signal_to_noise_db` is how well a batch agreed in bfloat16, where that was compared: the variance of the outputs
    over the rounding's squared error. `before` and `best` are the validation scores of the model before the training
    and of its best epoch, as torch computes them; a training that `failed` left the model as it was. `says` tells so in
    words. `frozen` names the modules that ran as in the file, and other frozen parameters. `data` says what their
    loader keeps itself, and whether a pass over them can be replayed. `threads` says which numbers of threads computed
    it, where others than torch's own did.
    """

    training: str = ""
    optimizer: str | None = None
    rate: float | None = None
    rate_from: str | None = None
    inner_layers: str = ""
    why: str = ""
    signal_to_noise_db: float | None = None
    before: float | None = None
    best: float | None = None
    failed: bool = False
    says: str = ""
    frozen: tuple[str, ...] = ()
    data: str | None = None
    threads: str | None = None


@dataclass(frozen=True, kw_only=True)
class Trainings(Note):
    """All trainings of a stage in order: one, or those between its pruning steps."""

    trainings: tuple[Training, ...]


@dataclass(frozen=True, kw_only=True)
class Teaching(Note):
    """The class of the teacher, where it may be another than the original, and what came of remembering its outputs.

    `taught` says in words how the judged outputs were compared. `student` is the class of a network that took the place
    of the model, and `student_from` the function that made it.
    """

    teacher: str | None = None
    teacher_cache: str
    taught: str | None = None
    student: str | None = None
    student_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class Learnt(Note):
    """What a training on new data brought, by `metric`, on what was held out of them and on the old validation data.

    `replay` is the part of old batches among those that it read.
    """

    metric: str
    replay: float
    new_before: float | None = None
    new_after: float | None = None
    old_before: float | None = None
    old_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Forgotten(Note):
    """How much worse than the model before it a training on new data is on the old test data, and that in words."""

    forgotten: Estimate | None
    forgotten_says: str


@dataclass(frozen=True, kw_only=True)
class Adapters(Note):
    """{feature: the class of the map that fitted the student's features to the teacher's}."""

    adapters: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class OutputChange:
    """What became of an output besides the judged one: how it was treated, and how far it is from the reference's.

    `before` and `after` the training are the root mean square difference on validation over the output's spread. `says`
    tells in words what a training lost of it, where that is much.
    """

    output: str
    treated: str
    before: float | None = None
    after: float | None = None
    says: str | None = None


@dataclass(frozen=True, kw_only=True)
class OtherOutputs(Note):
    """What became of every output besides the judged one."""

    other_outputs: tuple[OutputChange, ...]


@dataclass(frozen=True, kw_only=True)
class ZeroCount:
    """How many weights (or channels) of a layer (or group, named after its first layer) are exactly zero."""

    layer: str = "?"
    zero: int
    of: int


@dataclass(frozen=True, kw_only=True)
class ZeroChannels(Note):
    """The groups in which a penalty drives channels to zero, and the part of all their channels that is."""

    zero_channels_fraction: float | None
    zero_channels: tuple[ZeroCount, ...]


@dataclass(frozen=True, kw_only=True)
class ZeroWeights(Note):
    """The layers in which a penalty or a score makes weights zero, and the part of all their weights that is."""

    zero_weights_fraction: float | None
    penalty_strength: float | None = None
    zero_weights: tuple[ZeroCount, ...]


@dataclass(frozen=True, kw_only=True)
class Sparsified(Note):
    """By which score and in which pattern weights were made zero for good."""

    zeros_by: str
    zeros_in: str


@dataclass(frozen=True, kw_only=True)
class SparsityRound:
    """One step of an adaptive schedule: the sparsity that was tried, whether it was `kept`, and why in words."""

    sparsity: float
    kept: bool
    says: str = ""


@dataclass(frozen=True, kw_only=True)
class SparsityRounds(Note):
    """The steps of an adaptive schedule in order, and by layer how much of it became zero in the end."""

    sparsity_rounds: tuple[SparsityRound, ...]
    layer_sparsity: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ChannelOrder:
    """A group of channels that changed places: the weights' magnitude that a pattern keeps, before and after.

    `reason` says why the order stayed, "" where it changed.
    """

    group: str = "?"
    before: float | None = None
    kept: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ChannelOrders(Note):
    """Which groups of channels changed places, so that a pattern keeps more of the weights that read them."""

    reordered: tuple[ChannelOrder, ...]


@dataclass(frozen=True, kw_only=True)
class ValueCount:
    """How many different values the weights of a layer have, and the squared error of sharing over their energy."""

    layer: str = "?"
    values: int
    of: int
    error: float


@dataclass(frozen=True, kw_only=True)
class SharedValues(Note):
    """The layers whose weights share few values for good, and by which settings."""

    shared_by: str
    shared_values: tuple[ValueCount, ...]


@dataclass(frozen=True, kw_only=True)
class StoredCodebook:
    """A tensor of the file that is stored as numbers into codebooks, of so many values in all, one a weight."""

    tensor: str = "?"
    values: int
    of: int


@dataclass(frozen=True, kw_only=True)
class CodebooksStored(Note):
    """The tensors of the file that are stored as codebooks."""

    codebooks_stored: tuple[StoredCodebook, ...]


@dataclass(frozen=True, kw_only=True)
class NormsReestimated(Note):
    """How many batch normalizations have new statistics, from how many batches, which none reached or are frozen."""

    layers: int
    batches: int
    unreached: tuple[str, ...]
    frozen: tuple[str, ...] | None = None
