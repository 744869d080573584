"""What `fr-deploy bench kernels` says of an op: without a clock, and with one."""

from dataclasses import dataclass

from fr_bench.machine import Machine


@dataclass(frozen=True)
class Checked:
    """What is known of a case without a clock."""

    op: str
    impl: str
    """"triton" or "cuda" on a GPU; on a CPU "reference", "cpu", and "triton", which is interpreted."""
    shape: str
    dtype: str
    error: float
    """Largest absolute error against float64, of the output that is nearest to its budget."""
    allowed: float
    flops: int
    bytes: int
    """Inputs read once and outputs (of a training case: gradients) written once; what a face covers."""
    launches: int
    registers: int | None
    """Most of any of the op's kernels on sm_90, from the ahead-of-time table; None outside a checkout."""


@dataclass(frozen=True, kw_only=True)
class KernelRow(Machine):
    """One technique at one shape on a GPU; the order of the fields is the header of the CSV file."""

    date: str
    gpu: str
    op: str
    shape: str
    dtype: str
    technique: str
    repeats: int
    p20_us: float
    p50_us: float
    p80_us: float
    gb_per_s: float
    tflop_per_s: float
    copy_gb_per_s: float
    """Measured in the same run, as is the next."""
    matmul_tflop_per_s: float
    error: float
    allowed: float


def table_line(checked: Checked) -> str:
    """One line for a reader: error, work, launches, registers."""
    registers = "?" if checked.registers is None else checked.registers
    return (
        f"{checked.op:<19} {checked.impl:<9} {checked.dtype} {checked.shape:<50} "
        f"error {checked.error:.2e} of {checked.allowed:.2e}  "
        f"{checked.flops / 1e6:10.2f} MFLOP {checked.bytes / 1e6:8.2f} MB  launches {checked.launches}  "
        f"registers {registers}"
    )


def time_line(row: KernelRow) -> str:
    """One line for a reader: times, rates beside the ceilings."""
    return (
        f"    {row.technique:<11} p50 {row.p50_us:10.1f} us (p20 {row.p20_us:.1f}, p80 {row.p80_us:.1f})  "
        f"{row.gb_per_s:8.1f} of {row.copy_gb_per_s} GB/s  {row.tflop_per_s:7.2f} of {row.matmul_tflop_per_s} TFLOP/s"
    )
