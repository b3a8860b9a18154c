from dataclasses import fields

import pytest

from compressor.quantization.quantizer import QuantizationSettings
from compressor.quantization.settings import IntegerSettings
from compressor.stages import QuantizationAwareTraining, Quantize


def test_quantize_is_its_settings_and_nothing_more() -> None:
    """The stage adds no field to the settings, and the order of all is the one that reprs on disk have."""
    names = [field.name for field in fields(Quantize)]
    assert names == [field.name for field in fields(QuantizationSettings)]
    assert names[:5] == [field.name for field in fields(IntegerSettings)]
    assert " ".join(names) == (
        "weights activations calibration form skip equalization smoothing mixed rounding bias_correction give_back "
        "portable"
    )


def test_training_keeps_the_order_of_its_fields() -> None:
    """Snapshots are identified by the repr: what every training is told stands first, as it is inherited."""
    assert " ".join(field.name for field in fields(QuantizationAwareTraining)) == (
        "epochs steps tail_epochs optimizer schedule weight_decay layer_rates clip accumulate averaging patience "
        "precision freeze data replay held new_data weights activations calibration temperature soft_weight form skip"
    )


@pytest.mark.parametrize("kind", [IntegerSettings, Quantize, QuantizationAwareTraining])
def test_a_bare_string_skips_nothing(kind: type) -> None:
    """`skip="fc"` would be read as the globs 'f' and 'c'; the tuple that was meant is spelled out."""
    with pytest.raises(ValueError, match=r"got the string 'fc'; write \('fc',\)"):
        kind(skip="fc")
