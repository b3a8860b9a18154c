"""The classic pruning example as `tensorflow_model_optimization` has it, in an interpreter of its own.

    python -m benchmarks.peers.keras_process mnist.npz dense.npz pruned.npz --network convolutional [--epochs 5]

`benchmarks.classic` calls it with the interpreter of an environment that holds TensorFlow (`make .venv-tfmot`).
`dense.npz` holds the trained weights as Keras lays them out, in the order of its layers, and so does `pruned.npz`,
with the logits of the first test images, by which the way there and back is checked. Prints one line of JSON: the
versions, and the seconds that pruning took, without imports.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

# The tool prunes Keras 2 alone, which goes on as tf_keras.
os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

CHECKED = 100


def network(keras, name: str):
    """The network of benchmarks.data.classic in Keras, channels last."""
    layers = keras.layers
    if name == "dense":
        parts = [layers.Flatten(), layers.Dense(64, activation="relu"), layers.Dense(10)]
    else:
        parts = [
            layers.Conv2D(32, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(64, 3, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
            layers.Dense(10),
        ]
    return keras.Sequential([layers.InputLayer((28, 28, 1)), *parts])


def pruned(model, images, digits, options: argparse.Namespace):
    """`model` trained for some more epochs while its sparsity rises, its masks then made permanent."""
    import tensorflow_model_optimization as tool
    import tf_keras as keras

    wrapped = tool.sparsity.keras.prune_low_magnitude(
        model,
        pruning_schedule=tool.sparsity.keras.PolynomialDecay(
            initial_sparsity=options.initial,
            final_sparsity=options.sparsity,
            begin_step=0,
            end_step=options.end,
            frequency=options.frequency,
        ),
    )
    wrapped.compile(
        optimizer=keras.optimizers.Adam(options.rate),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    wrapped.fit(
        images,
        digits,
        batch_size=options.batch,
        epochs=options.epochs,
        verbose=0,
        callbacks=[tool.sparsity.keras.UpdatePruningStep()],
    )
    return tool.sparsity.keras.strip_pruning(wrapped)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("dense", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--network", choices=["convolutional", "dense"], required=True)
    parser.add_argument("--training", type=int, default=55_000, help="so many of the first digits train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--initial", type=float, default=0.5)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--end", type=int, default=1000)
    parser.add_argument("--frequency", type=int, default=100)
    options = parser.parse_args()
    import tensorflow as tf
    import tensorflow_model_optimization as tool
    import tf_keras as keras

    keras.utils.set_random_seed(options.seed)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    with np.load(options.data) as file:
        images, digits = file["x_train"][: options.training], file["y_train"][: options.training]
        checked = file["x_test"][:CHECKED]
    with np.load(options.dense) as file:
        weights = [file[name] for name in file.files]
    model = network(keras, options.network)
    model.set_weights(weights)
    started = time.perf_counter()
    model = pruned(model, scaled(images), digits.astype("int64"), options)
    seconds = time.perf_counter() - started
    logits = model.predict(scaled(checked), verbose=0)
    np.savez(options.result, logits=logits, **{f"weight_{n}": w for n, w in enumerate(model.get_weights())})
    versions = {module.__name__: module.__version__ for module in (tf, keras, tool)}
    print(json.dumps({"versions": versions, "seconds": seconds}))


def scaled(pixels: np.ndarray) -> np.ndarray:
    """Bytes (count, 28, 28) as (count, 28, 28, 1) in [0, 1]."""
    return pixels[..., None].astype("float32") / 255


if __name__ == "__main__":
    main()
