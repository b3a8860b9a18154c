"""The table of what calibration takes."""

from benchmarks.quantization.calibration import calibration_table, memory_growth


def test_a_calibration_table_tells_what_more_images_took() -> None:
    """107 MiB for 64 images and 110.6 for 4096 are 3.6 more; a run that was left out says why and does not count."""
    rows = [
        {
            "method": method,
            "images": images,
            "seconds": 1.0,
            "images_per_second": speed,
            "tensors": 88,
            "growth_mib": mib,
        }
        for method, images, speed, mib in (
            ("Percentile", 64, 150.0, 107.0),
            ("Percentile", 1024, 210.0, 105.0),
            ("Percentile", 4096, 220.0, 110.6),
            ("onnxruntime Percentile", 64, 40.0, 377.0),
            ("onnxruntime Percentile", 1024, 42.0, 5604.0),
        )
    ]
    rows.append({"method": "onnxruntime Percentile", "images": 4096, "skipped": "it would keep 28 GiB of activations"})
    assert memory_growth(rows) == {
        "Percentile": {"from_images": 64, "to_images": 4096, "mib": 3.6},
        "onnxruntime Percentile": {"from_images": 64, "to_images": 1024, "mib": 5227.0},
    }
    ours, theirs = calibration_table({"rows": rows}).splitlines()[2:]
    assert ours.endswith("| 220 /s, 111 MiB | +4 MiB from 64 to 4096 | 5.0x |")
    assert theirs.endswith("| left out: it would keep 28 GiB of activations | +5227 MiB from 64 to 1024 | 1.0x |")
