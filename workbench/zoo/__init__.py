"""Small networks of many architectures, built from configurations, and the check that pruning gets each right."""

from workbench.zoo import (
    attention,
    convolutional,
    convolutional_variants,
    dense_prediction,
    hugging_face_text,
    hugging_face_vision,
    other,
    recurrent,
)

ARCHITECTURES = (
    *convolutional.ARCHITECTURES,
    *convolutional_variants.ARCHITECTURES,
    *dense_prediction.ARCHITECTURES,
    *recurrent.ARCHITECTURES,
    *attention.ARCHITECTURES,
    *other.ARCHITECTURES,
    *hugging_face_vision.ARCHITECTURES,
    *hugging_face_text.ARCHITECTURES,
)
