"""`python -m benchmarks`: the table of README, in one run, as Markdown and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import warnings
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ["steps", "bf16", "abreast", "climb", "googlenet", "memory", "network", "spearman", "paths", "audit", "ray"]
PARTS += ["cost"]


TITLES = {
    "steps": "Milliseconds per image and step, GoogLeNet (random weights), 224 px",
    "steps_bf16": "The same in bf16 (fast only where the processor has bf16 arithmetic)",
    "abreast": "The same, one batch with all threads and two side by side with half of them each",
    "bf16_pictures": "Activation (in float32) of finished pictures, PhotoNet, 96 px, as multiples of float32's",
    "climb": "Activation of the finished image, and time to it, against Lucent: PhotoNet, 96 px",
    "climb_googlenet": "The same: GoogLeNet (random weights), 224 px",
    "memory": "Peak memory of many pictures, and of scanning many images for exemplars of all blocks: PhotoNet, 96 px",
    "network": "All units of PhotoNet",
    "spearman": "Spearman between all pairs of 100 images with 200,000 activations each, half of them 0",
    "audit": "An audit of GoogLeNet (random weights), 224 px, part by part: seconds of one processor",
    "ray": "Ray: batches of 8 units of PhotoNet, one thread a worker",
    "paths": "Peak memory of path similarity, GoogLeNet (random weights), 224 px",
}


def processor() -> str:
    """The name of the processor, where Linux tells it."""
    names = _told("model name")
    return names[0] if names else platform.processor()


def has_bf16() -> bool:
    """Whether the processor computes in bf16 itself, where Linux tells it; else a step takes seconds."""
    return any({"avx512_bf16", "amx_bf16"} & set(line.split()) for line in _told("flags"))


def _told(about: str) -> list[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return [line.split(":")[1].strip() for line in lines if line.startswith(about)]


def markdown(found: dict) -> str:
    """All results as tables, with the command and the machine."""
    parts = [f"`python -m benchmarks` on {found['machine']}."]
    for key, title in TITLES.items():
        rows = found.get(key)
        if not rows:
            continue
        rows = rows if isinstance(rows, list) else [rows]
        lines = [[name.replace("_", " ") for name in rows[0]], ["---"] * len(rows[0])]
        lines += [[cell(value) for value in row.values()] for row in rows]
        parts += [f"**{title}**", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    return "\n\n".join(parts) + "\n"


def cell(value: object) -> str:
    """A number with three digits; nothing where there is none."""
    if not isinstance(value, float):
        return str(value)
    return "" if value != value else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="what to measure (everything by default)")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds of the step times")
    parser.add_argument("--quick", action="store_true", help="two rounds, fewer steps: to see that it works")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for results.md, results.json and cost.json")
    options = parser.parse_args()
    # Threads that wander between processors stall; libgomp reads this when torch is imported.
    os.environ.setdefault("GOMP_CPU_AFFINITY", " ".join(map(str, range(options.threads))))
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    warnings.simplefilter("ignore")

    import torch

    from benchmarks import audit, climb, cost, engine, memory, peer, similarity, steps

    torch.set_num_threads(options.threads)
    if not peer.available():
        print(peer.HOW_TO_INSTALL, file=sys.stderr)
    parts = options.parts or PARTS
    rounds = 2 if options.quick else options.rounds
    file = options.out / "results.json"
    found = json.loads(file.read_text()) if file.is_file() and options.parts else {}
    options.out.mkdir(parents=True, exist_ok=True)
    if "cost" in parts:
        # In a file of its own, which the page "How far does it scale?" reads: always one thread, its own machine.
        print("cost of a step and of an image ...", file=sys.stderr)
        machine = f"{processor()}, 1 thread, torch {torch.__version__}"
        about = {"command": f"python -m benchmarks cost --rounds {rounds}", "machine": machine}
        (options.out / "cost.json").write_text(json.dumps(about | cost.measure(rounds), indent=1) + "\n")
    if parts == ["cost"]:
        return
    found["machine"] = f"{processor()}, {options.threads} threads, torch {torch.__version__}"
    if "steps" in parts:
        print("step times ...", file=sys.stderr)
        found["steps"] = steps.measure(rounds, 5, ("fp32",))
    if "bf16" in parts:
        found["bf16_pictures"] = climb.bf16_pictures(*([16] if options.quick else []))
        found["steps_bf16"] = steps.measure(*((rounds, 5) if has_bf16() else (1, 2)), ("bf16",))
    if "abreast" in parts:
        precisions = ("fp32", "bf16") if has_bf16() else ("fp32",)
        found["abreast"] = steps.measure_abreast(options.threads, rounds, 5, precisions)
    if "climb" in parts:
        print("time to the same activation ...", file=sys.stderr)
        found["climb"] = climb.photonet()
    if "googlenet" in parts and not options.quick:
        found["climb_googlenet"] = climb.googlenet()
    if "memory" in parts:
        print("memory ...", file=sys.stderr)
        found["memory"] = memory.measure(options.threads, *([(100, 1_000)] if options.quick else []))
    if "network" in parts:
        found["network"] = memory.whole_network(16 if options.quick else 256, options.threads)
    if "spearman" in parts:
        found["spearman"] = similarity.spearman()
    if "paths" in parts:
        print("memory of path similarity ...", file=sys.stderr)
        found["paths"] = similarity.memory(options.threads, {"blocks": (160,)} if options.quick else similarity.COUNTS)
    if "audit" in parts:
        print("an audit of GoogLeNet ...", file=sys.stderr)
        found["audit"] = audit.measure(*((6, 60, 4) if options.quick else (100, 2000)))
    if "ray" in parts:
        print("workers ...", file=sys.stderr)
        found["ray"] = engine.measure(*((6, 8) if options.quick else (12, 32)))
    text = markdown(found)
    file.write_text(json.dumps(found, indent=1))
    (options.out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
