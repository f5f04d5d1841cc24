"""Ternary planes: each regression against its closed form, each choice against all others, and what the format keeps."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from edgekit.errors import UsageError
from edgekit.lowbit.formats import CODECS, detect_ternary
from edgekit.methods.eora import output_error
from edgekit.methods.ternarize import Ternary, block_sums, fitted, regressed, ternarize, two_planes


def case(rows: int = 8, columns: int = 200, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(600, columns, generator=random) @ torch.randn(columns, columns, generator=random)
    return torch.randn(rows, columns, generator=random) + 0.1, (x.t() @ x).double()


def signs(rows: int, columns: int) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), generator=torch.Generator().manual_seed(3)).double()


def test_scale_and_offset_of_pt2_llm() -> None:
    """Its closed form for alpha and mu, row by row."""
    weight, t = case()[0].double(), signs(8, 200)
    found = regressed(weight, torch.stack([t, torch.ones_like(t)]), None, 0.0)
    for w, signed, (alpha, mu) in zip(weight, t, found, strict=True):
        m, tt, total = 200, (signed * signed).sum(), signed.sum()
        d = m * tt - total**2
        assert float(alpha) == pytest.approx(float((m * (w * signed).sum() - total * w.sum()) / d))
        assert float(mu) == pytest.approx(float((tt * w.sum() - total * (w * signed).sum()) / d))


def test_activation_aware_scales() -> None:
    """The 2 x 2 system of the paper, solved row by row; no other scales leave less error in the outputs."""
    weight, hessian = case()
    w, t, one = weight.double(), signs(8, 200), torch.ones(200, dtype=torch.float64)
    found = regressed(w, torch.stack([t, torch.ones_like(t)]), hessian, 0.0)
    for row, signed, scales in zip(w, t, found, strict=True):
        system = torch.stack([torch.stack([a @ hessian @ b for b in (signed, one)]) for a in (signed, one)])
        target = torch.stack([row @ hessian @ signed, row @ hessian @ one])
        torch.testing.assert_close(scales, torch.linalg.solve(system, target))
    scaled = regressed(w, torch.stack([t]), hessian * 1e6, 1e-4)
    torch.testing.assert_close(scaled, regressed(w, torch.stack([t]), hessian, 1e-4))


def test_iterative_fitting_ends_where_nothing_is_better() -> None:
    weight = case()[0].double()
    for offset in (False, True):
        t = fitted(weight, offset)
        bases = torch.stack([t, torch.ones_like(t)]) if offset else t[None]
        scales = regressed(weight, bases, None, 0.0)
        middle = scales[:, 1:] if offset else 0.0
        choices = torch.stack([(weight - middle - sign * scales[:, :1]).abs() for sign in (-1, 0, 1)])
        assert torch.equal(t, choices.argmin(0).double() - 1)
        start = weight.sign() * (weight.abs() > 0.75 * weight.abs().mean(1, keepdim=True))
        first = weight - start * regressed(weight, start[None], None, 0.0)
        assert (weight - (bases * scales.t()[:, :, None]).sum(0)).square().sum() <= first.square().sum()


def test_two_planes_choose_the_best_of_nine() -> None:
    weight = case(4, 50)[0].double()
    planes = two_planes(weight, 1e-4)
    scales = regressed(weight, planes, None, 1e-4)
    for row in range(4):
        values = {a * scales[row, 0] + b * scales[row, 1] for a, b in itertools.product((-1, 0, 1), repeat=2)}
        for column in range(50):
            chosen = planes[0, row, column] * scales[row, 0] + planes[1, row, column] * scales[row, 1]
            best = min(abs(float(weight[row, column] - value)) for value in values)
            assert abs(float(weight[row, column] - chosen)) == pytest.approx(best, abs=1e-12)


def test_published_errors_on_gaussian_weights() -> None:
    """Normalized errors measured elsewhere for blocks of 128: 0.181 with one plane, 0.028 with two."""
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    white = torch.eye(256, dtype=torch.float64)
    for planes, expected in ((1, 0.181), (2, 0.028)):
        found = ternarize(weight, white, Ternary(planes=planes)).weight
        assert float((found - weight).square().sum() / weight.square().sum()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("settings", [Ternary(), Ternary(planes=1), Ternary(planes=1, offset=True)])
def test_the_format_keeps_each_plane(settings: Ternary) -> None:
    weight, hessian = case(8, 200)
    found = ternarize(weight, hessian, settings)
    assert len(found.planes) == settings.planes
    for plane in found.planes:
        packed = CODECS["t2"].quantize(plane.numpy(), 128)
        assert np.array_equal(CODECS["t2"].dequantize(packed), plane.numpy())
    total = sum(found.planes)
    if found.offset is not None:
        assert found.offset.shape == (8, 2)
        total = total + found.offset @ block_sums(200)
    torch.testing.assert_close(found.weight, total)


def test_what_a_block_loses_later_ones_make_up_for() -> None:
    """After a block is fixed the best change of all others together, by the normal equations."""
    weight, hessian = case(5, 256)
    settings = Ternary(planes=1, damping=1e-9)
    first = ternarize(weight, hessian, settings).weight[:, :128]
    lost = weight[:, :128].double() - first.double()
    a, b = slice(0, 128), slice(128, 256)
    best = weight[:, b].double() + lost @ hessian[a, b] @ torch.linalg.inv(hessian[b, b])
    alone = ternarize(best.float(), hessian[b, b], settings).weight
    torch.testing.assert_close(ternarize(weight, hessian, settings).weight[:, b], alone, rtol=1e-3, atol=1e-4)


def test_alignment_and_feedback_help() -> None:
    weight, hessian = case(16, 256)
    errors = [
        output_error(ternarize(weight, hessian, Ternary(planes=1, aligned=a, feedback=f)).weight - weight, hessian)
        for a, f in ((False, False), (True, False), (True, True))
    ]
    assert errors[2] < errors[1] < errors[0]


def test_blocks_of_zeros() -> None:
    weight = case(3, 200)[0]
    weight[0], weight[1, :128] = 0, 0
    for settings in (Ternary(), Ternary(planes=1), Ternary(planes=1, offset=True)):
        found = ternarize(weight, torch.eye(200, dtype=torch.float64), settings).weight
        assert torch.isfinite(found).all() and not found[0].any() and not found[1, :128].any()


def test_refusals() -> None:
    with pytest.raises(UsageError, match="ternarize: planes 3, offset False; planes are 1 or 2"):
        Ternary(planes=3)
    with pytest.raises(UsageError, match="only one plane has an offset"):
        Ternary(planes=2, offset=True)
    with pytest.raises(
        UsageError, match=r"ternarize: group_size 64, offset False; a group is 128 columns, or 0, a row"
    ):
        Ternary(group_size=64)
    with pytest.raises(
        UsageError, match=r"ternarize: group_size 0, offset True; a group is 128 columns, or 0, a row, which has no"
    ):
        Ternary(planes=1, offset=True, group_size=0)
    with pytest.raises(UsageError, match="ternarize: damping 0, ridge 0"):
        Ternary(damping=0)


def test_a_row_may_share_its_scale() -> None:
    weight, hessian = (
        torch.randn(6, 300, generator=torch.Generator().manual_seed(3)),
        torch.eye(300, dtype=torch.float64),
    )
    found = ternarize(weight, hessian, Ternary(planes=1, group_size=0)).weight
    scales = detect_ternary(found.numpy())
    assert scales is not None and scales.shape == (6,)
    assert 0.15 < float((found - weight).square().mean() / weight.square().mean()) < 0.22  # Gaussian: 0.19
