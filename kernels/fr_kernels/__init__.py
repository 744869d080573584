"""Ops that the models call; each folder is one op. Imports torch only."""

from fr_kernels.boosthub_attention.op import boosthub_attention
from fr_kernels.codebook.argmin import ArgminResult, differentiable_argmin
from fr_kernels.codebook.op import nearest_code, soft_lookup
from fr_kernels.codebook.results import IndexedCode, NearestCode
from fr_kernels.conv3x3.op import conv3x3, conv3x3_on_cpu, pack_conv3x3
from fr_kernels.face_warp.op import cut_faces, paste_faces
from fr_kernels.geglu.op import geglu
from fr_kernels.group_norm_silu.op import group_norm_silu
from fr_kernels.layer_norm.op import layer_norm
from fr_kernels.phase_shuffle.op import phase_shuffle
from fr_kernels.sdfm_gate.op import sdfm_gate
from fr_kernels.sdfm_gate.reference import SdfmWeights
from fr_kernels.settle.op import settle
from fr_kernels.upsample_conv.op import pack_upsample_conv, upsample_conv, upsample_conv_on_cpu

__all__ = [
    "ArgminResult",
    "IndexedCode",
    "NearestCode",
    "SdfmWeights",
    "boosthub_attention",
    "conv3x3",
    "conv3x3_on_cpu",
    "cut_faces",
    "differentiable_argmin",
    "geglu",
    "group_norm_silu",
    "layer_norm",
    "nearest_code",
    "pack_conv3x3",
    "pack_upsample_conv",
    "paste_faces",
    "phase_shuffle",
    "sdfm_gate",
    "settle",
    "soft_lookup",
    "upsample_conv",
    "upsample_conv_on_cpu",
]
