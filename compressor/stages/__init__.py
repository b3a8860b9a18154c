"""The catalogue of stages: what a recipe may name.

A technique is a file in this folder; below stand its import, its name in `__all__` and its class in BUILT_IN.
"""

from typing import Any

from compressor.checks import explains_settings
from compressor.clustering.codebooks import DensityCentroids, KMeansPlusPlus, LinearCentroids
from compressor.low_rank.settings import (
    BestWay,
    Canonical,
    Channelwise,
    Energy,
    OutputError,
    Rank,
    Spatial,
    Tucker,
    WeightError,
)
from compressor.plugins import STAGES, by_name
from compressor.pruning.choice.targets import Latency, Macs, Parameters
from compressor.pruning.merging.fed import Calibration, Noise
from compressor.pruning.penalties import GroupLasso, L1Penalty, L2Penalty, SlimmingPenalty
from compressor.pruning.ranking.criteria import FPGM, L1, L2, LAMP, Activation, BatchNormScale, Hessian, Random, Taylor
from compressor.pruning.ranking.scope import Global, Isomorphic, PerGroup, PerLayer
from compressor.pruning.schedules import Cubic, Linear, OneShot, Steps
from compressor.quantization.accuracy.adaptive_rounding import AdaRound
from compressor.quantization.accuracy.bias_correction import BiasCorrection
from compressor.quantization.accuracy.equalization import CrossLayerEqualization
from compressor.quantization.accuracy.gptq import GPTQ
from compressor.quantization.accuracy.smoothing import SmoothQuant
from compressor.quantization.choice.chosen_widths import ChosenWidths
from compressor.quantization.choice.give_back import GiveBack
from compressor.quantization.choice.mixed_precision import MixedPrecision
from compressor.quantization.choice.sensitivity import SQNR, TaskMetric
from compressor.quantization.grids.schemes import Asymmetric, PerBlock, PerChannel, PerTensor, Symmetric
from compressor.quantization.other_cpus.portability import Portable, SafePairs, SevenBits
from compressor.quantization.placement.forms import (
    ByEvidence,
    ByFamily,
    Candidate,
    Dynamic,
    Fastest,
    Float16,
    Static,
    WeightOnly,
)
from compressor.quantization.quantizer import Nearest
from compressor.quantization.ranges.methods import MSE, Auto, Entropy, MinMax, MovingAverage, Percentile
from compressor.sparsity.adaptive import Adaptive
from compressor.sparsity.masks import PerRow
from compressor.sparsity.patterns import Blocks, Rows, SemiStructured, Unstructured
from compressor.sparsity.schedules import Polynomial
from compressor.sparsity.scores import FirstOrder, Magnitude, Movement, Wanda
from compressor.sparsity.sparse_gpt import SparseGPT
from compressor.stage import Effect
from compressor.stages.batch_norm import ReestimateBatchNorm
from compressor.stages.channel_pruning import PruneChannels
from compressor.stages.codebook_storing import StoreCodebooks
from compressor.stages.distillation import Distill
from compressor.stages.fine_tuning import FineTune
from compressor.stages.layer_dropping import DropBlocks
from compressor.stages.layer_factorizing import FactorizeLayers
from compressor.stages.quantization import Quantize
from compressor.stages.quantization_aware import QuantizationAwareTraining
from compressor.stages.similar_merging import MergeSimilar
from compressor.stages.sparse_training import SparseTraining
from compressor.stages.structure_setting import SetStructure
from compressor.stages.structure_shrinking import ShrinkStructure
from compressor.stages.weight_clustering import ClusterWeights
from compressor.stages.weight_sparsifying import SparsifyWeights
from compressor.stages.zero_removal import RemoveZeroChannels
from compressor.training.hints import Hint
from compressor.training.objectives.answers import (
    Correlation,
    Decoupled,
    Relational,
    SelfDistillation,
    SoftTargets,
    StandardizedLogits,
)
from compressor.training.objectives.features import AttentionMaps, FeatureValues
from compressor.training.optimizers.choices import SGD, AdamW, AutoOptimizer, OwnOptimizer
from compressor.training.optimizers.schedules import Constant, Cosine, OneCycle
from compressor.training.precision import AutoPrecision, BFloat16, Float32

# The stages and the values that their fields take.
__all__ = [
    "FPGM",
    "GPTQ",
    "L1",
    "L2",
    "LAMP",
    "MSE",
    "SGD",
    "SQNR",
    "Activation",
    "AdaRound",
    "AdamW",
    "Adaptive",
    "Asymmetric",
    "AttentionMaps",
    "Auto",
    "AutoOptimizer",
    "AutoPrecision",
    "BFloat16",
    "BatchNormScale",
    "BestWay",
    "BiasCorrection",
    "Blocks",
    "ByEvidence",
    "ByFamily",
    "Calibration",
    "Candidate",
    "Canonical",
    "Channelwise",
    "ChosenWidths",
    "ClusterWeights",
    "Constant",
    "Correlation",
    "Cosine",
    "CrossLayerEqualization",
    "Cubic",
    "Decoupled",
    "DensityCentroids",
    "Distill",
    "DropBlocks",
    "Dynamic",
    "Energy",
    "Entropy",
    "FactorizeLayers",
    "Fastest",
    "FeatureValues",
    "FineTune",
    "FirstOrder",
    "Float16",
    "Float32",
    "GiveBack",
    "Global",
    "GroupLasso",
    "Hessian",
    "Hint",
    "Isomorphic",
    "KMeansPlusPlus",
    "L1Penalty",
    "L2Penalty",
    "Latency",
    "Linear",
    "LinearCentroids",
    "Macs",
    "Magnitude",
    "MergeSimilar",
    "MinMax",
    "MixedPrecision",
    "Movement",
    "MovingAverage",
    "Nearest",
    "Noise",
    "OneCycle",
    "OneShot",
    "OutputError",
    "OwnOptimizer",
    "Parameters",
    "PerBlock",
    "PerChannel",
    "PerGroup",
    "PerLayer",
    "PerRow",
    "PerTensor",
    "Percentile",
    "Polynomial",
    "Portable",
    "PruneChannels",
    "QuantizationAwareTraining",
    "Quantize",
    "Random",
    "Rank",
    "ReestimateBatchNorm",
    "Relational",
    "RemoveZeroChannels",
    "Rows",
    "SafePairs",
    "SelfDistillation",
    "SemiStructured",
    "SetStructure",
    "SevenBits",
    "ShrinkStructure",
    "SlimmingPenalty",
    "SmoothQuant",
    "SoftTargets",
    "SparseGPT",
    "SparseTraining",
    "SparsifyWeights",
    "Spatial",
    "StandardizedLogits",
    "Static",
    "Steps",
    "StoreCodebooks",
    "Symmetric",
    "TaskMetric",
    "Taylor",
    "Tucker",
    "Unstructured",
    "Wanda",
    "WeightError",
    "WeightOnly",
    "catalogue",
]

BUILT_IN: tuple[type[Any], ...] = (
    ShrinkStructure,
    SetStructure,
    PruneChannels,
    MergeSimilar,
    DropBlocks,
    FactorizeLayers,
    SparseTraining,
    SparsifyWeights,
    ClusterWeights,
    RemoveZeroChannels,
    ReestimateBatchNorm,
    FineTune,
    Distill,
    QuantizationAwareTraining,
    Quantize,
    StoreCodebooks,
)

for _name in __all__[:-1]:
    explains_settings(globals()[_name])


def catalogue() -> dict[str, type[Any]]:
    """Every stage class by its recipe name: the built-in ones, then those of installed entry points.

    A package adds its own with `[project.entry-points."compressor.stages"]`. What of them cannot be used is left out
    with a PluginWarning.
    """
    return by_name(BUILT_IN, STAGES, "a dataclass with an `effect` and apply(model, workload, context)", _is_stage)


def _is_stage(kind: type[Any]) -> bool:
    return isinstance(getattr(kind, "effect", None), Effect) and callable(getattr(kind, "apply", None))
