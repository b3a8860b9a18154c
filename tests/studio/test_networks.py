"""The studio in a browser on networks of other shapes: ResNet-20, MobileNetV2 and a transformer over words."""

import os
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from workbench.studio import Studio

pytestmark = pytest.mark.browser
_MINUTE = 60_000
# The weights matter to no promise of the page: those of two are drawn, those of ResNet-20 are there with the data.
WORKLOADS = """
import torch
from benchmarks.data.networks import MobileNetV2, TextTransformer, seeded
from compressor.workload import Workload


def mobilenetv2():
    x, y = torch.randn(128, 3, 32, 32), torch.arange(128) % 10
    return Workload.from_datasets(
        seeded(lambda: MobileNetV2(blocks=2)).eval(), train=(x, y), test=(x[:64], y[:64]), batch_size=32
    )


def transformer():
    x, y = torch.randint(1, 200, (128, 16)), torch.arange(128) % 2
    model = seeded(lambda: TextTransformer(vocabulary=200, length=16, width=64, feed_forward=128, layers=2)).eval()
    return Workload.from_datasets(model, train=(x, y), test=(x[:64], y[:64]), batch_size=32)
"""
NETWORKS = ("benchmarks.data.cifar:resnet20", "drawn:mobilenetv2", "drawn:transformer")


@pytest.mark.parametrize("network", NETWORKS, ids=lambda name: name.partition(":")[2])
def test_a_network_is_seen_and_made_smaller(chromium, network, tmp_path) -> None:
    """Its picture in all details, a width that is narrowed, what that costs, and back; nothing sticks out anywhere."""
    data = os.environ.get("COMPRESSOR_DATA", "")
    if "resnet20" in network and not (Path(data) / "resnet20.safetensors").is_file():
        pytest.skip("needs COMPRESSOR_DATA with resnet20.safetensors")
    (tmp_path / "drawn.py").write_text(WORKLOADS)
    studio = Studio(network, tmp_path / "runs", cwd=tmp_path)
    try:
        page = chromium.new_page(viewport={"width": 1300, "height": 900})
        seen: list[str] = []
        page.on("console", lambda message: seen.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.goto(studio.link())
        page.wait_for_selector("#graph", timeout=5 * _MINUTE)
        page.wait_for_selector("#plan", timeout=10 * _MINUTE)
        counts = []
        for detail in ("operators", "layers", "blocks"):
            page.click(f"[data-detail={detail}]")
            page.wait_for_selector(f"[data-detail={detail}][aria-pressed=true]")
            counts.append(page.locator(".box").count())
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] > 2
        page.locator("[data-width]").first.focus()
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#recipe:has-text('set_structure')")
        page.wait_for_selector("#tiles .good-text", timeout=_MINUTE)
        page.wait_for_selector(".box.narrow, .box.out")
        for width in (1300, 800, 390):
            page.set_viewport_size({"width": width, "height": 900})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.click("#undo")
        page.wait_for_selector("#recipe:has-text('Nothing is chosen')")
        assert seen == []
        page.context.close()
    finally:
        studio.end()
