"""The evaluations that recipes and the command line can name."""

from compressor.evaluations.by_class import ByClass
from compressor.evaluations.calibration import Calibration
from compressor.evaluations.evaluation import Evaluation
from compressor.evaluations.generalisation import GeneralisationGap
from compressor.evaluations.membership import MembershipInference
from compressor.evaluations.removed import WhatWent
from compressor.evaluations.robustness import Robustness
from compressor.stage import stage_name

EVALUATIONS: dict[str, type[Evaluation]] = {
    stage_name(kind): kind
    for kind in (Calibration, GeneralisationGap, Robustness, ByClass, WhatWent, MembershipInference)
}
