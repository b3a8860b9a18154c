"""One fold of a cross-validation, as a workload of the user's own is given it, and the reference trained for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from compressor.checks import check_fraction
from compressor.errors import FoldsError, StorageError
from compressor.given.splits import in_fold, labels_of, parted
from compressor.identity.values import Identifier
from compressor.progress.bars import say
from compressor.storage import sha256, write_atomic
from compressor.structure.calling.draws import seeded
from compressor.tensor_files import read_tensor_file, tensor_file

_REFERENCE = "reference.safetensors"


class Parts(NamedTuple):
    """Which samples train, which decide and which test, as ascending indices; no sample is in two of them."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]


class Fold:
    """One fold: the `number`-th (from 1) of `folds`, in the `repeat`-th (from 1) of `repeats` ways to part the samples.

    Equal `seed`s part alike. A workload that is a function of the fold asks `split` for its samples and `trained` for a
    reference that has seen none of those that test.
    """

    def __init__(self, *, number: int, folds: int, repeat: int, repeats: int, seed: int, folder: Path) -> None:
        self.number, self.folds, self.repeat, self.repeats, self.seed = number, folds, repeat, repeats, seed
        self._folder = folder
        self._asked: tuple[Any, ...] | None = None
        self.parts: Parts | None = None

    def __repr__(self) -> str:
        return f"<Fold {self.number} of {self.folds}, repeat {self.repeat} of {self.repeats}>"

    @property
    def index(self) -> int:
        """Its place among all folds of all repeats, from 0."""
        return (self.repeat - 1) * self.folds + self.number - 1

    @property
    def name(self) -> str:
        """Its name, which is that of its folder: "fold-2", or "repeat-1-fold-2" where there are several repeats."""
        return f"repeat-{self.repeat}-fold-{self.number}" if self.repeats > 1 else f"fold-{self.number}"

    def split(self, targets: Any, *, stratified: bool | None = None, validation: float = 0.1) -> Parts:
        """The samples of this fold, of as many as `targets` (samples, ...) have.

        A fold is stratified where targets are integers or texts in one dimension, or as `stratified` says. `validation`
        in (0, 1) is the fraction of the samples beside the fold that decide. Raises FoldsError where a fold would be
        empty or lack a class, and where it is asked for another split than before.
        """
        check_fraction(
            validation, "validation is the fraction of the samples beside the fold that decide", within="(0, 1)"
        )
        if stratified is not None and not isinstance(stratified, bool):
            raise FoldsError(f"stratified is True, False or left out, got {stratified!r}")
        test = in_fold(
            targets,
            folds=self.folds,
            number=self.number,
            seed=self.seed + self.repeat - 1,
            stratified=stratified,
        )
        labels = labels_of(targets)
        asked = (len(labels), _digest(labels), stratified, validation)
        if self._asked is not None and asked != self._asked:
            raise FoldsError(
                "a fold is split once, by the same targets: two splits would share samples between training and test; "
                "keep what fold.split gives, and use it for everything"
            )
        self._asked = asked
        classes = stratified is not False and labels.ndim == 1 and labels.dtype.kind in "biuUSO"
        strata = np.unique(labels, return_inverse=True)[1].tolist() if classes else None
        beside = np.setdiff1d(np.arange(len(labels)), test).tolist()
        count = max(1, round(len(beside) * validation))
        if count >= len(beside):
            raise FoldsError(
                f"validation={validation} takes {count} of the {len(beside)} samples beside {self.name}, and none is "
                "left to train on; lower it, or give more samples"
            )
        train, decides = parted(beside, count, strata, self.seed + self.index)
        self.parts = Parts(np.array(train, dtype=np.int64), np.array(decides, dtype=np.int64), test)
        return self.parts

    def trained(self, make: Callable[[], nn.Module], train: Callable[[nn.Module], object]) -> nn.Module:
        """The model of `make()` after `train(model)`, in evaluation mode; it is on disk for the next call of the same.

        Both run under one seed of torch, numpy and Python, which the fold decides. What is on disk is taken where
        neither code nor data of both functions have changed. Raises FoldsError before `split`.
        """
        if self.parts is None:
            raise FoldsError("fold.trained comes after fold.split: only then it is known what the model may see")
        found = Identifier().digest((make, train))
        key = sha256(repr((found.text, self._asked, self.index, self.seed)).encode())
        with seeded(self.seed + self.index):
            model = make()
            if not self._restored(model, "" if found.unknown else key):
                say(f"training the reference of {self.name}")
                train(model)
                self._keep(model, key)
        return model.eval()

    def _keep(self, model: nn.Module, key: str) -> None:
        state = model.state_dict()
        if all(isinstance(value, Tensor) for value in state.values()):
            # Copies: tied weights are one tensor, and a file has none twice.
            content = tensor_file({name: tensor.clone() for name, tensor in state.items()}, {"key": key})
            write_atomic(self._folder / _REFERENCE, content)

    def _restored(self, model: nn.Module, key: str) -> bool:
        path = self._folder / _REFERENCE
        if not key or not path.is_file():
            return False
        try:
            tensors, facts = read_tensor_file(path, way_out="it is trained again")
        except StorageError:
            return False
        if facts.get("key") != key:
            return False
        model.load_state_dict(tensors)
        return True

    @property
    def digest(self) -> str:
        """Which samples test, and of which targets: equal for equal splits of equal targets."""
        return sha256(repr((self._asked, None if self.parts is None else self.parts.test.tolist())).encode())


def _digest(labels: NDArray[Any]) -> str:
    plain = labels.astype(str) if labels.dtype.kind == "O" else labels
    return sha256(repr((plain.dtype.str, plain.shape)).encode() + np.ascontiguousarray(plain).tobytes())
