"""The time and memory that pruning itself takes, beside Torch-Pruning, on models of the usual sizes.

    python -m benchmarks.structure.pruning_time [--models resnet50 vit_b bert_base] [--rounds 3] [--timeout 900]

Each measurement is a process of its own, ours and the peer's in turns. Both take half of every width by the L1 norm of
random weights; ours also proves on two batch sizes that the narrowed model computes what the masked one does, which
Torch-Pruning does not. `graph` is the time to find what is coupled, `prune` that from the dense model to the narrow
one, the graph included, of which `running` went into forward passes of the model; `peak_mib` is how far the process's
memory rose above where it stood before.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks.stored import RESULTS
from compressor.machine import environment
from compressor.stage import Context
from compressor.storage import read_json, write_json
from compressor.target import Target
from compressor.workload import call_model, output_tensor
from workbench import ROOT
from workbench.same_data import same_data

RESULT = RESULTS / "pruning-time.json"
TOOLS = ("compressor", "torch-pruning")
COLUMNS = ("graph", "prune", "running", "peak_mib", "parameters_left")


def resnet50() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000)), {"pixel_values": torch.randn(2, 3, 224, 224)}


def vit_b() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=1000)), {"pixel_values": torch.randn(2, 3, 224, 224)}


def bert_base() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(BertConfig()), {"input_ids": torch.randint(1000, 20_000, (2, 128))}


def tiny_resnet() -> tuple[nn.Module, dict[str, Tensor]]:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], num_labels=10)
    return ResNetForImageClassification(config), {"pixel_values": torch.randn(2, 3, 32, 32)}


MODELS = {"resnet50": resnet50, "vit_b": vit_b, "bert_base": bert_base, "tiny_resnet": tiny_resnet}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    usual = [name for name in MODELS if name != "tiny_resnet"]
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=usual)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one measurement")
    parser.add_argument("--worker", nargs=2, metavar=("TOOL", "MODEL"), help="measure once and print JSON")
    arguments = parser.parse_args()
    if arguments.worker:
        tool, name = arguments.worker
        print(json.dumps(measured(tool, name)))
        return
    where = environment(Target())
    stored = read_json(RESULT)["models"] if RESULT.exists() else {}
    for name in arguments.models:
        stored[name] = compare(name, arguments.rounds, arguments.timeout)
        ordered = {key: stored[key] for key in MODELS if key in stored}
        write_json(RESULT, {"benchmark": "pruning-time", "environment": where, "models": ordered})
        print_table(name, stored[name])
    print(f"stored in {RESULT}")


def compare(name: str, rounds: int, timeout: float) -> dict[str, list[dict]]:
    """What every round of every tool gave; a tool that failed or took too long is not asked again."""
    found: dict[str, list[dict]] = {tool: [] for tool in TOOLS}
    for _ in tqdm(range(rounds), desc=name, unit="round"):
        for tool in TOOLS:
            if not any(row["error"] for row in found[tool]):
                found[tool].append(in_own_process(tool, name, timeout))
    return found


def in_own_process(tool: str, name: str, timeout: float) -> dict:
    """One measurement: {"graph", "prune", "running", "peak_mib", "parameters_left", "error"}."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", __spec__.name, "--worker", tool, name],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {timeout:g} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["died without a word"])[-1][:300]}
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(tool: str, name: str) -> dict:
    torch.manual_seed(0)
    model, example = MODELS[name]()
    model.eval()
    before = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        call_model(model, example)  # what the first call allocates is neither's doing
    graph, prune = (our_graph, our_pruning) if tool == "compressor" else (peer_graph, peer_pruning)
    load_modules(tool)
    start = perf_counter()
    graph(model, example)
    graph_seconds = perf_counter() - start
    forwards = timed_forwards(model)
    forget_peak()
    resident = memory_mib("VmRSS")
    start = perf_counter()
    pruned, finish = prune(model, example)
    seconds = perf_counter() - start
    peak, running = memory_mib("VmHWM") - resident, sum(forwards)
    finish(pruned)
    error = None
    try:
        with torch.no_grad():
            output_tensor(call_model(pruned, example))
    except Exception as trouble:  # noqa: BLE001 - a model that does not run is a fact of the table
        error = f"the pruned model does not run: {type(trouble).__name__}: {str(trouble).splitlines()[0][:200]}"
    left = sum(parameter.numel() for parameter in pruned.parameters()) / before
    return {
        "graph": graph_seconds,
        "prune": seconds,
        "running": running,
        "peak_mib": peak,
        "parameters_left": left,
        "error": error,
    }


def load_modules(tool: str) -> None:
    """Imports what `tool` needs, so that nobody's time is that of reading files."""
    if tool == "compressor":
        import compressor.stages
        import compressor.structure.graph  # noqa: F401 - imported for the time it takes
    else:
        import torch_pruning  # noqa: F401 - the same


def our_graph(model: nn.Module, example: dict[str, Tensor]) -> None:
    from compressor.structure.graph import trace_structure

    trace_structure(model, example)


def our_pruning(model: nn.Module, example: dict[str, Tensor]) -> tuple[nn.Module, object]:
    from compressor.pruning.ranking.criteria import L1
    from compressor.pruning.ranking.scope import PerLayer
    from compressor.stages import PruneChannels

    data = [(example, torch.zeros(2, dtype=torch.long))]
    workload = same_data(model, data, example)
    stage = PruneChannels(remove=0.5, criterion=L1(), scope=PerLayer(), align=1)
    return stage.apply(model, workload, Context(progress=False)), lambda _: None


def peer_graph(model: nn.Module, example: dict[str, Tensor]) -> None:
    import torch_pruning as tp

    tp.DependencyGraph().build_dependency(model, example, output_transform=lambda output: output.logits.sum())


def peer_pruning(model: nn.Module, example: dict[str, Tensor]) -> tuple[nn.Module, object]:
    """As in the library's own examples for transformers: heads are named, and the attributes set by hand afterwards."""
    import torch_pruning as tp

    heads = {
        getattr(module, name): module.num_attention_heads
        for module in model.modules()
        if hasattr(module, "num_attention_heads")
        for name in ("query", "key", "value")
        if hasattr(module, name)
    }
    classifier = [module for module in model.classifier.modules() if isinstance(module, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        model,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=1),
        global_pruning=False,
        pruning_ratio=0.5,
        ignored_layers=classifier,
        num_heads=heads,
        output_transform=lambda output: output.logits.sum(),
        in_channel_groups={},
        out_channel_groups={},
    )
    pruner.step()

    def finish(model: nn.Module) -> None:
        for module in model.modules():
            if hasattr(module, "num_attention_heads") and hasattr(module, "query"):
                module.num_attention_heads = pruner.num_heads[module.query]
                module.all_head_size = module.query.out_features
                module.attention_head_size = module.query.out_features // module.num_attention_heads

    return model, finish


def timed_forwards(model: nn.Module) -> list[float]:
    """Fills with the seconds of every run of `model` and of its copies from now on."""
    started, seconds = [], []
    model.register_forward_pre_hook(lambda *_: started.append(perf_counter()))
    model.register_forward_hook(lambda *_: seconds.append(perf_counter() - started.pop()))
    return seconds


def forget_peak() -> None:
    """Lets Linux start its record of the process's highest memory anew."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def memory_mib(name: str) -> float:
    """VmRSS (now) or VmHWM (highest) of this process in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def median(rows: list[dict], key: str) -> float | None:
    """The median over the rounds that worked; None where none did."""
    values = [row[key] for row in rows if key in row]
    return statistics.median(values) if values else None


def print_table(name: str, tools: dict[str, list[dict]]) -> None:
    print(f"\n{name}")
    print(f"{'tool':14s} {'graph, s':>9s} {'prune, s':>9s} {'running, s':>10s} {'peak, MiB':>10s} {'parameters':>10s}")
    for tool, rows in tools.items():
        values = [median(rows, key) for key in COLUMNS]
        error = next((row["error"] for row in rows if row["error"]), "")
        if None in values:
            print(f"{tool:14s} {error}")
            continue
        graph, prune, running, peak, left = values
        print(f"{tool:14s} {graph:9.2f} {prune:9.2f} {running:10.2f} {peak:10.0f} {left:10.2f} {error}")


if __name__ == "__main__":
    main()
