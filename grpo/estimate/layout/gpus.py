"""What kinds of GPUs can do, as published, and which share of it is assumed to be reached; and this machine's CPU.

Peaks are dense bfloat16 with float32 accumulation; links are per GPU and direction. Memory is the published decimal
size, below what the driver reports by the few percent that a CUDA context takes.
"""

from dataclasses import dataclass

import psutil

from grpo.estimate.machine import cores, machine_flops


@dataclass(frozen=True, slots=True)
class Gpu:
    """A kind of GPU, in bytes and seconds, and the shares of its peaks that the phases reach."""

    name: str
    flops: float  # per second
    bandwidth: float  # of its memory
    memory: int
    link: float  # to another GPU of its machine
    network: float  # to a GPU of another machine
    per_machine: int = 8
    device: str = "cuda"
    # Assumed, not measured: shares of the peaks, and the host's time while sampling and publishing.
    update: float = 0.3  # of FLOP/s; as in `grpo check`
    prefill: float = 0.4  # of FLOP/s, while an engine computes; and in passes without gradient
    decode: float = 0.6  # of memory bandwidth, while an engine samples
    links: float = 0.7  # of links and network
    per_iteration: float = 3e-3  # an engine's step, whatever it computes
    per_token: float = 1e-5  # sampled: scheduling, log-probs, text
    per_tensor: float = 1e-4  # a published weight, by checkpoint name
    files: float = 1e9  # bytes per second through a shared folder
    elementwise: float = 0.0  # FLOPs that take as long as the work around a byte which autograd keeps


GPUS = {
    gpu.name: gpu
    for gpu in (
        # NVIDIA A100 80GB SXM data sheet; NVLink 3: 600 GB/s both ways; DGX A100: 200 Gb/s per GPU.
        Gpu("a100", 312e12, 2.039e12, 80 * 10**9, 300e9, 25e9),
        # NVIDIA H100 and H200 SXM data sheets, 1,979 TFLOP/s with sparsity; NVLink 4: 900 GB/s; DGX: 400 Gb/s per GPU.
        Gpu("h100", 989.4e12, 3.35e12, 80 * 10**9, 450e9, 50e9),
        Gpu("h200", 989.4e12, 4.8e12, 141 * 10**9, 450e9, 50e9),
        # NVIDIA HGX B200 data sheet, 4.5 PFLOP/s with sparsity; NVLink 5: 1,800 GB/s; DGX B200: 400 Gb/s per GPU.
        Gpu("b200", 2250e12, 8e12, 180 * 10**9, 900e9, 50e9),
        # NVIDIA L40S data sheet; PCIe 4.0 x16, no NVLink; network of 100 Gb/s per GPU assumed.
        Gpu("l40s", 362e12, 864e9, 48 * 10**9, 32e9, 12.5e9),
        # NVIDIA Ada whitepaper, appendix A; PCIe 4.0 x16 without peer access; 10 Gb/s Ethernet assumed.
        Gpu("rtx4090", 165.2e12, 1.008e12, 24 * 10**9, 32e9, 1.25e9),
    )
}


def find_gpu(name: str, count: int) -> Gpu:
    """The kind called `name`; "cpu" is this machine, divided among `count` processes.

    Raises:
        KeyError: there is no such kind.
    """
    if name == "cpu":
        return cpu(count, psutil.virtual_memory().total, machine_flops("float32", device="cpu"), cores())
    return GPUS[name]


def cpu(processes: int, memory: int, flops: float, cores: int) -> Gpu:
    """A process's share of `cores` that have `memory` and do `flops` per second in float32 matrix products.

    The rest is fitted to runs of recipes/r1_zero.yaml and of SmolLM2-135M (docs/scale.md).
    """
    return Gpu(
        "cpu",
        flops=flops / processes,
        bandwidth=20e9 / processes,
        memory=memory // processes,
        link=1e9,
        network=1e9,
        per_machine=processes,
        device="cpu",
        update=0.95,
        prefill=0.33,
        decode=0.6,
        per_iteration=1.1e-2,
        per_token=9.6e-5,
        per_tensor=4.5e-4 * max(1.0, processes / cores),
        files=2e8,
        elementwise=460.0,
    )
