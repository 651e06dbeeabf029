"""Image operators against their definitions; contract, adjoint, SVD and invariances of all of them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from assimilate.errors import UnknownName, UserError
from dynamics import Field, Space, Streams
from imaging.operators import OPERATORS, build_operator, operator_settings
from imaging.operators.blur import Blur, gaussian_blur, hartley, motion_blur
from imaging.operators.dynamic_range import HighDynamicRange
from imaging.operators.inpainting import box_inpainting, picture, random_inpainting
from imaging.operators.kernels import gaussian_kernel, motion_kernel
from imaging.operators.nonlinear_blur import NonlinearBlur
from imaging.operators.phase_retrieval import PhaseRetrieval
from imaging.operators.quantisation import Quantise
from imaging.operators.resolution import Bicubic, bicubic_weights, block_mean, cubic_kernel
from observations import BlockMean, LinearOperator, Mask, check_operator

SHAPE = (2, 12, 8)
SPACE = Space((Field("image", dims=("y", "x"), units="1"),), {"y": np.arange(9.0), "x": np.arange(12.0)})
GENERATOR = torch.Generator().manual_seed(0)
UNEVEN = torch.rand(4, 3, generator=GENERATOR, dtype=torch.float64) - 0.2
torch.manual_seed(0)
NETWORK = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3), nn.Tanh(), nn.Conv2d(3, 2, 3)).eval()

LINEAR = [
    random_inpainting(SHAPE),
    random_inpainting(SPACE, 0.3, 1),
    box_inpainting(SHAPE),
    box_inpainting(SPACE, 4, top=1, left=0),
    block_mean(SHAPE),
    Bicubic(SHAPE, 2),
    Bicubic(SHAPE, 4),
    Bicubic(SPACE, 3),
    Bicubic(SHAPE, 1),
    gaussian_blur(SHAPE, 0.8, 5),
    gaussian_blur((1, 16, 12), 1.5),
    gaussian_blur(SHAPE, 1.0, 7, "reflect"),
    motion_blur(SPACE, size=7),
    motion_blur(SHAPE, 1.0, 5, "reflect", seed=3),
    Blur(SPACE, UNEVEN),
    Blur(SHAPE, UNEVEN, "reflect"),
    Blur((1, 5, 5), torch.ones(5, 5) / 25),
]
OTHERS = [
    PhaseRetrieval(SHAPE),
    PhaseRetrieval(SPACE, 0.0),
    HighDynamicRange(SHAPE),
    HighDynamicRange(SPACE, low=-1.0),
    Quantise(SHAPE, 4, -2.0, 2.0),
    Quantise(SHAPE, straight_through=False),
    NonlinearBlur(SHAPE, NETWORK),
    NonlinearBlur(SHAPE, "torch:sin"),
]


@pytest.mark.parametrize("operator", LINEAR + OTHERS, ids=repr)
def test_contract(operator):
    check_operator(operator)


@pytest.mark.parametrize("operator", LINEAR + OTHERS, ids=repr)
def test_one_image_or_many_in_either_precision(operator):
    x = torch.rand(5, *operator.event_shape, generator=GENERATOR, dtype=torch.float64)
    together = operator(x)
    alone = torch.stack([operator(one) for one in x])
    assert torch.allclose(together, alone, rtol=0, atol=1e-13)
    # float32 rounds; a value near the middle of two levels may round to either.
    single = operator(x.float()).double()
    away = torch.ones_like(together, dtype=torch.bool)
    if isinstance(operator, Quantise):
        part = ((x.clamp(operator.low, operator.high) - operator.low) / operator.step) % 1
        away = (part - 0.5).abs() > 1e-4
    assert torch.allclose(single[away], together[away], rtol=1e-4, atol=3e-6)


@pytest.mark.parametrize("operator", LINEAR, ids=repr)
def test_adjoint_svd_and_pseudo_inverse(operator):
    matrix = operator.matrix()
    x = torch.randn(3, *operator.event_shape, generator=GENERATOR, dtype=torch.float64)
    y = torch.randn(3, *operator.obs_shape, generator=GENERATOR, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(operator(x).flatten(1), x.flatten(1) @ matrix.T, atol=1e-12)
    assert torch.allclose(operator.adjoint(y).flatten(1), y.flatten(1) @ matrix, atol=1e-12)
    by_autograd = LinearOperator.adjoint(operator, y)
    assert torch.allclose(operator.adjoint(y), by_autograd, atol=1e-12)
    (gradient,) = torch.autograd.grad((operator.adjoint(y) * x).sum(), y)
    assert torch.allclose(gradient, operator(x), atol=1e-12)
    svd = operator.svd()
    if isinstance(operator, Blur) and operator.boundary == "reflect":
        assert svd is None
        return
    y = y.detach()
    values = torch.linalg.svdvals(matrix)
    # Dropped values are round-off: below 1e-12 of the largest.
    positive = values[values > 1e-12 * values[0]]
    found = svd.singular.double().sort(descending=True).values
    assert torch.allclose(found[: positive.numel()], positive, rtol=1e-6) and found.numel() == positive.numel()
    c = torch.randn(3, found.numel(), generator=GENERATOR, dtype=torch.float64)
    assert torch.allclose(svd.project(svd.expand(c)), c, atol=1e-10)
    assert torch.allclose(svd.project_observed(svd.expand_observed(c)), c, atol=1e-10)
    # V^T is the adjoint of V, and U^T of U.
    for inner, outer, z in ((svd.project, svd.expand, x), (svd.project_observed, svd.expand_observed, y)):
        assert torch.allclose((inner(z) * c).sum(), (z * outer(c)).sum(), atol=1e-10)

    def pseudo_inverse(y):
        return svd.expand(svd.project_observed(y) / svd.singular.to(y))

    image = operator(x)
    # A A+ A = A and A+ A A+ = A+; a condition number of 1e10 costs as many digits.
    slack = 1e-15 * float(found[0] / found[-1])
    assert torch.allclose(operator(pseudo_inverse(image)), image, rtol=0, atol=1e-5 * slack + 2e-7)
    inverse = pseudo_inverse(y)
    again = pseudo_inverse(operator(inverse))
    assert float((again - inverse).norm() / inverse.norm()) < 100 * slack + 2e-7


def test_inpainting_keeps_channels_together_and_networks_nested():
    image = torch.arange(192.0).reshape(SHAPE)
    few, many = random_inpainting(SHAPE, 0.8, 3), random_inpainting(SHAPE, 0.3, 3)
    assert few.obs_shape == (2 * 19,) and many.obs_shape == (2 * 67,)
    seen = ~picture(many, many(image)).isnan()
    assert torch.equal(seen[0], seen[1])
    assert bool((~picture(few, few(image)).isnan() <= seen).all())
    assert torch.equal(picture(many, many(image))[seen], image[seen])
    assert not torch.equal(random_inpainting(SHAPE, 0.3, 4).index, many.index)


def test_boxes():
    box = box_inpainting((1, 256, 256))
    assert box.obs_shape == (256**2 - 128**2,)
    corners = set()
    for seed in range(40):
        missing = picture(op := box_inpainting((1, 16, 32), seed=seed), torch.zeros(op.obs_shape))[0].isnan()
        rows, columns = missing.any(1).nonzero().flatten(), missing.any(0).nonzero().flatten()
        assert int(missing.sum()) == 64 and len(rows) == len(columns) == 8
        assert rows[0] >= 1 and rows[-1] <= 14 and columns[0] >= 1 and columns[-1] <= 30
        corners.add((int(rows[0]), int(columns[0])))
    assert len(corners) > 25
    with pytest.raises(ValueError, match="does not fit"):
        box_inpainting((1, 16, 16), 8, top=10)
    with pytest.raises(ValueError, match="margin 5 does not fit"):
        box_inpainting((1, 16, 16), 8, margin=5)
    with pytest.raises(ValueError, match="observes nothing"):
        box_inpainting((1, 16, 16), 16, top=0, left=0)


def test_bicubic_is_the_published_kernel():
    # Keys' kernel: an interpolation of third order that keeps constants, and has mean distance 0.
    s = torch.linspace(0, 1, 101, dtype=torch.float64)
    weights = torch.stack([cubic_kernel(s + k) for k in (1, 0, -1, -2)])
    nodes = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)[:, None]
    for power in (0, 1, 2):
        assert torch.allclose((weights * nodes**power).sum(0), s**power, atol=1e-12)
    assert float(cubic_kernel(torch.tensor(2.5))) == 0 and float(cubic_kernel(torch.tensor(0.0))) == 1
    # Inside, a line stays a line: coarse pixels see the value at their centre.
    line = torch.arange(32, dtype=torch.float64)
    for factor in (2, 4):
        coarse = bicubic_weights(32, factor) @ line
        centres = (torch.arange(32 // factor) + 0.5) * factor - 0.5
        assert torch.allclose(coarse[2:-2], centres[2:-2].double(), atol=1e-12)
    assert torch.allclose(bicubic_weights(24, 4).sum(1), torch.ones(6, dtype=torch.float64))
    assert torch.allclose(bicubic_weights(12, 3).flip(0, 1), bicubic_weights(12, 3), atol=1e-15)
    assert torch.equal(bicubic_weights(7, 1), torch.eye(7, dtype=torch.float64))
    # Mirrored edges: the operator on a picture is that on its mirrored double.
    x = torch.rand(1, 8, 8, generator=GENERATOR, dtype=torch.float64)
    twice = torch.cat([x.flip(-1), x, x.flip(-1)], -1)
    assert torch.allclose(Bicubic((1, 8, 24), 2)(twice)[..., 4:8], Bicubic((1, 8, 8), 2)(x), atol=1e-12)
    # Antialiasing: a pattern that the coarse pixels cannot hold is nearly gone.
    stripes = torch.cos(math.pi * 0.8 * torch.arange(64, dtype=torch.float64))
    assert float((bicubic_weights(64, 4) @ stripes)[3:-3].abs().max()) < 0.02
    assert Bicubic(SPACE, 3).positions.tolist() == BlockMean(SPACE, 3).positions.tolist()


def test_bicubic_as_pillow_does_it():
    image = pytest.importorskip("PIL.Image")
    x = np.random.default_rng(0).random((24, 36)).astype(np.float32)
    theirs = np.asarray(image.fromarray(x).resize((9, 6), image.Resampling.BICUBIC))
    ours = Bicubic((1, 24, 36), 4)(torch.from_numpy(x)[None])[0].numpy()
    # Its edges are cut off instead of mirrored.
    assert np.allclose(ours[2:-2, 2:-2], theirs[2:-2, 2:-2], atol=1e-6)


@pytest.mark.parametrize("boundary", ["periodic", "reflect"])
def test_blur_is_the_convolution(boundary):
    x = torch.rand(2, 9, 10, generator=GENERATOR, dtype=torch.float64)
    mode = {"periodic": "wrap", "reflect": "reflect"}[boundary]
    padded = np.pad(x.numpy(), ((0, 0), (5, 5), (5, 5)), mode=mode)
    rows, columns = UNEVEN.shape
    expected = np.zeros(x.shape)
    for a in range(rows):
        for b in range(columns):
            down, across = a - rows // 2, b - columns // 2
            expected += float(UNEVEN[a, b]) * padded[:, 5 - down : 14 - down, 5 - across : 15 - across]
    assert np.allclose(Blur((2, 9, 10), UNEVEN, boundary)(x).numpy(), expected, atol=1e-13)
    delta = torch.zeros(1, 15, 15, dtype=torch.float64)
    delta[0, 7, 7] = 1
    kernel = motion_kernel(7, rng=Streams(1))
    assert torch.allclose(Blur(delta.shape, kernel, boundary)(delta)[0, 4:11, 4:11], kernel, atol=1e-15)
    constant = torch.full((1, 15, 15), 3.0)
    assert torch.allclose(Blur(delta.shape, kernel, boundary)(constant), constant)


def test_hartley_transform():
    x = torch.randn(3, 6, 9, generator=GENERATOR, dtype=torch.float64)
    assert torch.allclose(hartley(hartley(x)), x, atol=1e-13)
    assert torch.allclose(hartley(x).norm(), x.norm())


def test_blur_drops_what_it_destroys():
    # A mean over 2 x 2 pixels destroys the checkerboard and every stripe of period 2: 2 n - 1 patterns.
    operator = Blur((1, 8, 8), torch.full((2, 2), 0.25))
    assert operator.svd().singular.numel() == 64 - 15
    assert operator.svd().singular.max() == pytest.approx(1.0)


def test_kernels():
    kernel = gaussian_kernel()
    place = torch.arange(-30.0, 31.0, dtype=torch.float64)
    assert kernel.shape == (61, 61) and float(kernel.sum()) == pytest.approx(1, abs=1e-12)
    assert float((kernel.sum(0) * place**2).sum()) == pytest.approx(9.0, rel=1e-6)
    assert torch.equal(kernel, kernel.T) and torch.equal(kernel, kernel.flip(0))
    spreads = []
    for intensity in (0.0, 0.5, 1.0):
        for seed in range(5):
            motion = motion_kernel(31, intensity, rng=Streams(seed))
            assert float(motion.sum()) == pytest.approx(1) and bool((motion >= 0).all())
            line = torch.arange(-15.0, 16.0, dtype=torch.float64)
            centre = torch.stack([(motion.sum(1) * line).sum(), (motion.sum(0) * line).sum()])
            assert float(centre.abs().max()) < 1e-9
            rows, columns = motion.nonzero().T - 15
            reach = float(torch.sqrt((rows**2 + columns**2).double()).max())
            assert 0.4 * 31 - 1.5 < reach < 0.4 * 31 + 1.5
            # How far from a straight line: the smaller principal variance over the larger.
            down, across = line[:, None], line[None, :]
            moments = [float((motion * m).sum()) for m in (down * down, down * across, across * across)]
            low, high = np.linalg.eigvalsh([[moments[0], moments[1]], [moments[1], moments[2]]])
            spreads.append(low / high)
    assert max(spreads[:5]) < 0.01 and np.mean(spreads[5:]) > 0.03
    assert torch.equal(motion_kernel(15, rng=Streams(2)), motion_kernel(15, rng=Streams(2)))
    other = motion_kernel(15, rng=torch.Generator().manual_seed(0))
    assert not torch.allclose(other, motion_kernel(15, rng=Streams(2)))
    assert gaussian_blur((1, 256, 256)).kernel.shape == motion_blur((1, 256, 256)).kernel.shape == (61, 61)
    assert gaussian_blur((1, 28, 28)).kernel.shape == (27, 27)
    assert motion_blur((1, 64, 64)).kernel.shape == (15, 15)


def test_phase_retrieval_and_its_ambiguities():
    operator = PhaseRetrieval((1, 16, 16))
    assert operator.obs_shape == (1, 24, 24) and PhaseRetrieval((1, 256, 256)).margins == (64, 64)
    x = torch.zeros(1, 16, 16, dtype=torch.float64)
    x[:, 3:11, 2:12] = torch.rand(8, 10, generator=GENERATOR, dtype=torch.float64)
    y = operator(x)
    assert float(y.norm()) == pytest.approx(float(x.norm()))
    for same in (-x, x.flip(-1, -2), x.roll((2, -1), (-2, -1))):
        assert torch.allclose(operator(same), y, atol=1e-13)
    assert not torch.allclose(operator(x.flip(-1)), y, atol=1e-3)
    # Gradient and curvature are finite at 0, where the amplitude has a corner.
    zero = torch.zeros_like(x).requires_grad_()
    (gradient,) = torch.autograd.grad((operator(zero) - y).square().sum(), zero, create_graph=True)
    assert torch.equal(gradient, torch.zeros_like(x))
    (second,) = torch.autograd.grad((gradient * x).sum(), zero)
    assert bool(torch.isfinite(second).all())
    _, tangent = torch.func.jvp(operator, (x,), (x,))
    assert torch.allclose(tangent, y, atol=1e-12)


def test_dynamic_range_is_the_published_one():
    u = torch.linspace(-1.4, 1.4, 96, dtype=torch.float64).reshape(1, 12, 8)
    published = (2 * u).clamp(-1, 1)
    assert torch.allclose(HighDynamicRange(u.shape, low=-1.0)(u), published)
    assert torch.allclose(2 * HighDynamicRange(u.shape)((u + 1) / 2) - 1, published)
    x = torch.tensor([0.1, 0.3, 0.7, 0.9]).reshape(1, 2, 2).requires_grad_()
    (gradient,) = torch.autograd.grad(HighDynamicRange(x.shape)(x).sum(), x)
    assert gradient.flatten().tolist() == [0, 2, 2, 0]
    with pytest.raises(ValueError, match="gain > 0 and low < high"):
        HighDynamicRange(x.shape, low=2.0)


def test_quantise():
    operator = Quantise((1, 1, 7), 3, -1.0, 1.0)
    x = torch.tensor([-9.0, -0.6, -0.4, 0.2, 0.6, 1.0, 5.0]).reshape(1, 1, 7).requires_grad_()
    assert operator(x).flatten().tolist() == [-1, -1, 0, 0, 1, 1, 1]
    (gradient,) = torch.autograd.grad(operator(x).sum(), x)
    assert gradient.flatten().tolist() == [0, 1, 1, 1, 1, 1, 0]
    (true,) = torch.autograd.grad(Quantise((1, 1, 7), 3, straight_through=False)(x).sum(), x)
    assert not true.any()
    # The rounding error of a spread-out image has the stated standard deviation (kurtosis of the uniform law: 1.8).
    fine = Quantise((1, 100, 100), 256)
    image = torch.rand(1, 100, 100, generator=GENERATOR, dtype=torch.float64)
    assert float((fine(image) - image).std()) == pytest.approx(fine.rounding_std, rel=4 * math.sqrt(0.8 / 4 / 1e4))
    with pytest.raises(ValueError, match="levels=1"):
        Quantise((1, 2, 2), 1)


def test_a_network_is_frozen_and_must_be_in_evaluation_mode():
    operator = NonlinearBlur(SHAPE, NETWORK)
    assert operator.obs_shape == (2, 10, 6)
    x = torch.rand(3, *SHAPE, generator=GENERATOR).requires_grad_()
    operator(x).sum().backward()
    assert bool(x.grad.any()) and all(p.grad is None and p.requires_grad for p in NETWORK.parameters())
    assert torch.allclose(operator(x), NETWORK(x))
    assert next(NETWORK.parameters()).dtype == torch.float32 and operator(x.double()).dtype == torch.float64
    with pytest.raises(ValueError, match=r"call network\.eval\(\)"):
        NonlinearBlur(SHAPE, nn.Sequential(nn.Conv2d(2, 2, 1)))
    with pytest.raises(ValueError, match="expected 'module:function'"):
        NonlinearBlur(SHAPE, "nothing")


@pytest.mark.parametrize("name", OPERATORS)
def test_every_name_makes_an_operator(name):
    module = OPERATORS[name].partition(":")[0]
    if not module.startswith(("imaging.operators.", "observations.")):
        pytest.fail(f"{name} points to {module}")
    needed = [n for n, p in operator_settings(name).items() if p.default is p.empty]
    settings = {"network": NETWORK} if "network" in needed else {}
    if set(needed) <= set(settings):
        shape = (2, 16, 16) if name in ("nonlinear-blur", "mri", "mri-multicoil") else (1, 16, 16)
        operator = build_operator(name, shape, **settings)
        assert operator.event_shape == shape


def test_names_and_settings_are_checked():
    assert isinstance(build_operator("gaussian-blur", SHAPE, std=2.0, size=5), Blur)
    assert isinstance(build_operator("observations.sampling:Mask", SHAPE, mask=[1, 2]), Mask)
    assert list(operator_settings("hdr")) == ["gain", "low", "high"]
    with pytest.raises(UnknownName, match="did you mean 'gaussian-blur'"):
        build_operator("gausian-blur", SHAPE)
    with pytest.raises(UserError, match="has no setting 'sigma'; valid: std, size, boundary"):
        build_operator("gaussian-blur", SHAPE, sigma=2.0)
    with pytest.raises(UserError, match="'nonlinear-blur' needs 'network'"):
        build_operator("nonlinear-blur", SHAPE)
    with pytest.raises(UserError, match="refuses its settings: size=4; a kernel has an odd number"):
        build_operator("gaussian-blur", SHAPE, size=4)
    with pytest.raises(UserError, match="cannot be imported"):
        build_operator("no.such.module:Thing", SHAPE)
    with pytest.raises(UserError, match="whose settings can be read"):
        build_operator("torch:pi", SHAPE)
    with pytest.raises(UserError, match="made a tuple; expected an ObservationOperator"):
        build_operator("imaging.operators.images:image_shape", SHAPE)


def test_shapes_that_are_no_images_are_refused():
    with pytest.raises(ValueError, match=r"needs \(channel, rows, columns\)"):
        Bicubic((12, 8), 2)
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = True
    holes = Space((Field("t", dims=("y", "x")),), {"y": np.arange(4.0), "x": np.arange(4.0)}, mask=mask)
    with pytest.raises(ValueError, match="no-data cells"):
        gaussian_blur(holes, size=3)
    with pytest.raises(ValueError, match="factor=5 does not divide 12 x 8"):
        Bicubic(SHAPE, 5)
    with pytest.raises(ValueError, match="is larger than the image"):
        gaussian_blur((1, 8, 8), size=9)
    with pytest.raises(ValueError, match="boundary='zero'"):
        gaussian_blur((1, 8, 8), size=3, boundary="zero")
