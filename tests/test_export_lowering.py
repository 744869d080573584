"""Each lowering against the operator it stands for: odd sizes, ties, NaN, both dtypes."""

from collections.abc import Callable

import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fr_export.lowering import TRANSLATIONS
from fr_kernels import nearest_code, phase_shuffle

DTYPES = [torch.float32, torch.float16]


class Applied(nn.Module):
    """A function with fixed weights."""

    def __init__(self, function: Callable[..., Tensor], *weights: Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.weights)


def exported(module: nn.Module, x: Tensor) -> onnx.ModelProto:
    program = torch.onnx.export(
        module.eval(),
        (x,),
        dynamo=True,
        opset_version=20,
        input_names=["x"],
        output_names=["y"],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
        custom_translation_table=TRANSLATIONS,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def run(model: onnx.ModelProto, x: Tensor) -> Tensor:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])


def kinds(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node}


@pytest.mark.parametrize("dtype", DTYPES)
def test_phase_shuffle(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 12, 4, 7).to(dtype)
    model = exported(Applied(phase_shuffle), x)
    for given in (x, x[:1]):
        assert torch.equal(run(model, given), phase_shuffle(given, impl="reference"))


@pytest.mark.parametrize("factor", [2, 3])
def test_pixel_unshuffle(factor: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 7 * factor, 4 * factor)
    model = exported(Applied(lambda t: F.pixel_unshuffle(t, factor)), x)
    assert torch.equal(run(model, x[:1]), F.pixel_unshuffle(x[:1], factor))


def codebook_with_ties(dtype: torch.dtype) -> Tensor:
    """Whole numbers, so that distances are exact; a code twice, and again last; a NaN."""
    codes = torch.randint(-64, 65, (33, 9)).to(dtype)
    codes[20], codes[32], codes[7, 3] = codes[5], codes[5], torch.nan
    return codes


@pytest.mark.parametrize("dtype", DTYPES)
def test_nearest_code_with_ties_and_a_nan(dtype: torch.dtype) -> None:
    """Squared distances are up to 36 000: float16 could not tell one from the next."""
    torch.manual_seed(0)
    codes = codebook_with_ties(dtype)
    x = torch.cat([codes[[5, 20, 32, 0]], torch.randint(-64, 65, (501, 9)).to(dtype)])
    model = exported(Applied(lambda f, c: nearest_code(f, c).indices, codes), x)
    wanted = nearest_code(x, codes, impl="reference").indices
    assert wanted[:3].tolist() == [5, 5, 5]
    assert torch.equal(run(model, x), wanted)
    assert torch.equal(run(model, x[4:5]), wanted[4:5])
    assert 7 not in wanted
    exact = ((x.double()[:, None] - codes.double()) ** 2).sum(2).nan_to_num(torch.inf)
    assert torch.equal(wanted.long(), exact.argmin(1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_and_silu(dtype: torch.dtype) -> None:
    """Far from zero: float16 statistics would be off by far more than a rounding."""
    torch.manual_seed(0)
    weight, bias = torch.randn(2, 12).to(dtype)
    x = (20 + torch.randn(2, 12, 5, 7)).to(dtype)
    module = Applied(lambda t, w, b: F.silu(F.group_norm(t, 4, w, b, 1e-6)), weight, bias)
    wide = module.function(x.double(), weight.double(), bias.double())
    model = exported(module, x)
    assert "InstanceNormalization" in kinds(model)
    error = (run(model, x).double() - wide).abs().max()
    # float32 statistics of values around 20, and two roundings of the result to dtype, SiLU's slope being at most 1.1.
    statistics = 4 * 20 * torch.finfo(torch.float32).eps
    assert error <= statistics + 1.1 * wide.abs().max() * torch.finfo(dtype).eps


@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention(dtype: torch.dtype, scale: float | None) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 7, 5).to(dtype)
    module = Applied(lambda t: F.scaled_dot_product_attention(t, t.flip(2), t, scale=scale))
    model = exported(module, x)
    wanted = module.function(x.double())
    assert (run(model, x).double() - wanted).abs().max() <= 8 * torch.finfo(dtype).eps
    assert {"MatMul", "Softmax"} <= kinds(model)


@pytest.mark.parametrize("dtype", DTYPES)
def test_softmax(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = (10 * torch.randn(2, 3, 7)).to(dtype)
    wanted = x.double().softmax(1)
    error = (run(exported(Applied(lambda t: t.softmax(1)), x), x).double() - wanted).abs().max()
    assert error <= 2 * torch.finfo(dtype).eps


def test_a_slice_written_into_a_picture() -> None:
    def framed(x: Tensor) -> Tensor:
        out = torch.full((x.shape[0], 9, 8, 3), 127.5)
        out[:, 2:-3, 1:-1] = x
        return out

    x = torch.randint(0, 256, (2, 4, 6, 3), dtype=torch.uint8)
    model = exported(Applied(framed), x)
    assert torch.equal(run(model, x[:1]), framed(x[:1]))
    assert "ScatterND" not in kinds(model)
