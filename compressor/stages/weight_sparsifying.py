"""Weight sparsity: single weights, blocks or whole rows become zero, and stay zero in every later training.

A score decides which go (`sparsity/scores.py`), a pattern in which shape (`sparsity/patterns.py`), a scope what is
ranked against what, and a schedule when: at once, in steps with training between them, or while the model trains.
"""

from dataclasses import dataclass, field
from typing import ClassVar

from torch import nn

from compressor.checks import check_fraction, check_globs, check_kinds
from compressor.identity.workload import knowing
from compressor.notes.structure import LockedLayers
from compressor.notes.training import ChannelOrders, Sparsified, ZeroCount, ZeroWeights
from compressor.pruning.narrowing import fold_model_
from compressor.pruning.ranking.scope import Global, PerLayer
from compressor.pruning.schedules import Cubic, Linear, OneShot, Steps
from compressor.sparsity.adaptive import Adaptive, sparsify_adaptively_
from compressor.sparsity.masks import PerRow
from compressor.sparsity.patterns import Blocks, Rows, SemiStructured, Unstructured
from compressor.sparsity.reordering import reorder_
from compressor.sparsity.schedules import Polynomial
from compressor.sparsity.scores import FirstOrder, Magnitude, Movement, Wanda
from compressor.sparsity.sparse_gpt import SparseGPT
from compressor.sparsity.sparsifying import Sparsifying
from compressor.sparsity.while_training import train_sparser
from compressor.stage import Context, Effect
from compressor.structure.preparing.matching import check_modules_match
from compressor.training.held_zeros import zeros_entry
from compressor.training.other_outputs import train_every_output
from compressor.workload import Workload


@dataclass(frozen=True, kw_only=True)
class SparsifyWeights:
    """Makes the part `sparsity`, in [0, 1), of the weights zero, those with the smallest `score`, for good.

    Weights are those of convolutions, linear, recurrent and embedding layers whose names match a glob of `layers` and
    none of `ignore`; what the `pattern` does not fit is left alone, with the reason. SemiStructured(n=2, m=4) says by
    itself how much goes, and takes no `sparsity`. `scope` says what is ranked against what (None: what suits the score:
    rows for Wanda, layers for SparseGPT, else the whole network). `schedule` spreads it over
    steps with training between them, over one training (Polynomial), or over as many steps as the model recovers from
    (Adaptive). The zeros stay in all later training and
    quantization; they make the file smaller once it is compressed, and nothing faster.
    """

    effect: ClassVar[Effect] = Effect.VALUES
    needs_recovery: ClassVar[bool] = True

    sparsity: float | None = None
    pattern: Unstructured | Rows | Blocks | SemiStructured = field(default_factory=Unstructured)
    score: Magnitude | FirstOrder | Movement | Wanda | SparseGPT = field(default_factory=Magnitude)
    scope: Global | PerLayer | PerRow | None = None
    schedule: OneShot | Linear | Cubic | Steps | Polynomial | Adaptive = field(default_factory=OneShot)
    layers: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_kinds(self)
        fixed = isinstance(self.pattern, SemiStructured)
        if fixed and self.sparsity is not None:
            raise ValueError(
                f"{self.pattern!r} says how many weights go, so that sparsity is left out; got sparsity={self.sparsity}"
            )
        if not fixed:
            if self.sparsity is None:
                raise ValueError("sparsity is the fraction of the weights that becomes zero; write sparsity=0.8")
            check_fraction(self.sparsity, "sparsity is the fraction of the weights that becomes zero")
        if isinstance(self.score, SparseGPT):
            self._check_sparse_gpt()
        if isinstance(self.schedule, Polynomial) and isinstance(self.score, Movement | SparseGPT):
            raise ValueError(
                f"Polynomial chooses zeros between two steps of a training, which {type(self.score).__name__} cannot: "
                "it needs a training or a reconstruction of its own; take OneShot(), Linear() or Cubic()"
            )
        if isinstance(self.schedule, Polynomial) and self.schedule.initial > self._final:
            raise ValueError(
                "initial is the sparsity that pruning begins with, at most the final one, for zeros stay; "
                f"got initial={self.schedule.initial} and {self._final:g} in the end; lower initial"
            )
        if isinstance(self.schedule, Adaptive):
            self._check_adaptive()
        scope = self.scope or self.score.scope
        if isinstance(self.pattern, Rows) and isinstance(scope, PerRow):
            raise ValueError("whole rows cannot be ranked within each row; take scope=PerLayer() or Global()")
        check_globs(self.layers, "layers", least=1)
        check_globs(self.ignore, "ignore")

    def _check_sparse_gpt(self) -> None:
        if not isinstance(self.pattern, Unstructured | SemiStructured):
            raise ValueError(
                f"SparseGPT makes up for single weights, got {self.pattern!r}; take Unstructured() or SemiStructured()"
            )
        if not isinstance(self.scope, PerLayer | None):
            raise ValueError(f"SparseGPT chooses within each layer, got {self.scope!r}; leave scope out")

    def _check_adaptive(self) -> None:
        if isinstance(self.pattern, SemiStructured) or isinstance(self.score, SparseGPT):
            raise ValueError(
                f"Adaptive gives each layer a sparsity of its own by ranking within it; got {self.pattern!r} and "
                f"{self.score!r}; take another schedule"
            )
        if not isinstance(self.scope, PerLayer | None):
            raise ValueError(f"Adaptive ranks within each layer, got {self.scope!r}; leave scope out")

    @property
    def _final(self) -> float:
        """The sparsity in the end."""
        final = self.pattern.sparsity if isinstance(self.pattern, SemiStructured) else self.sparsity
        assert final is not None  # checked where it is set
        return final

    @property
    def pattern_of_neighbours(self) -> bool:
        """Whether the zeros lie in a pattern that taking channels out would break."""
        return isinstance(self.pattern, SemiStructured)

    @property
    def reorders_channels(self) -> bool:
        """Whether inner channels change places, so that inner features are no longer the teacher's, one by one."""
        return isinstance(self.pattern, SemiStructured) and self.pattern.permute

    @property
    def moves_single_weights(self) -> tuple[str, ...]:
        """What moves weights that stay, each by itself, so that equal ones come apart."""
        return (repr(self.score),) if isinstance(self.score, SparseGPT) else ()

    @property
    def trains(self) -> bool:
        """Whether schedule or score need gradients."""
        return not isinstance(self.schedule, OneShot) or isinstance(self.score, FirstOrder | Movement)

    def apply(self, model: nn.Module, workload: Workload, context: Context) -> nn.Module:
        """The model with its zeros. Raises StageError, with the reasons, where no weight can become zero."""
        context = knowing(context, workload, self)
        check_modules_match("layers", self.layers, model, context.began_with(workload))
        check_modules_match("ignore", self.ignore, model, context.began_with(workload))
        fold_model_(model, workload, context, layers=self.layers, ignore=self.ignore)
        work = self._begun(model, workload, context)
        final = self._final
        work.require_some(final)
        if isinstance(self.pattern, SemiStructured) and self.pattern.permute:
            orders = reorder_(model, work.weights, self.pattern, workload, context)
            context.tell(ChannelOrders(reordered=tuple(orders)))
            work = self._begun(model, workload, context)
        context.plan.append(zeros_entry(work.names()))
        if isinstance(self.schedule, Polynomial):
            train_sparser(work, self.schedule, final, identity=repr(self))
        elif isinstance(self.schedule, Adaptive):
            sparsify_adaptively_(work, self.schedule, final, identity=repr(self))
        else:
            self._step_by_step(work, final)
        counts = tuple(
            ZeroCount(
                layer=weight.name.removesuffix(".weight"),
                zero=int((weight.parameter == 0).sum()),
                of=weight.parameter.numel(),
            )
            for weight in work.weights
        )
        total = sum(count.of for count in counts)
        context.tell(ZeroWeights(zero_weights_fraction=sum(c.zero for c in counts) / total, zero_weights=counts))
        context.tell(Sparsified(zeros_by=repr(self.score), zeros_in=repr(self.pattern)))
        context.tell(LockedLayers.of(work.left))
        return model

    def _begun(self, model: nn.Module, workload: Workload, context: Context) -> Sparsifying:
        return Sparsifying(
            model=model,
            workload=workload,
            context=context,
            pattern=self.pattern,
            score=self.score,
            scope=self.scope or self.score.scope,
            layers=self.layers,
            ignore=self.ignore,
        )

    def _step_by_step(self, work: Sparsifying, final: float) -> None:
        """Zeros in the steps of the schedule, with training between them."""
        schedule = self.schedule
        assert not isinstance(schedule, Polynomial | Adaptive)
        shares = schedule.shares
        for step, share in enumerate(shares, start=1):
            work.sparsify_(final * share)
            if step < len(shares) and not isinstance(schedule, OneShot):
                train_every_output(
                    work.model,
                    work.workload,
                    schedule.training,
                    context=work.context,
                    label=f"between sparsity steps {step} and {step + 1}",
                    identity=repr(self),
                )
