"""Losses: known values, and parts of a batch that add up to the whole."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pipeline.errors import Refused
from pipeline.training.losses import Loss, SquaredError, Term, parse_loss

WEIGHTS = torch.tensor([0.5, 1.0, 2.0])
LOSSES = ["cross_entropy", "focal", "dice", "cross_entropy+0.5*dice", "focal+dice"]


def batch(seed: int = 0, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits_BKHW = torch.randn(4, 3, 8, 6, generator=generator, dtype=torch.float64).float()
    labels_BHW = torch.randint(0, 3, (4, 8, 6), generator=generator)
    labels_BHW[torch.rand(labels_BHW.shape, generator=generator) < ignored] = 255
    return logits_BKHW, labels_BHW


def value(text: str, logits_BKHW: torch.Tensor, labels_BHW: torch.Tensor, weights: torch.Tensor = WEIGHTS, **more: float) -> torch.Tensor:
    loss = Loss(parse_loss(text), weights, **more)
    return loss(logits_BKHW, labels_BHW, loss.denominators(labels_BHW))


@pytest.mark.parametrize("text", LOSSES)
def test_parts_of_a_batch_add_up_to_the_whole_and_so_do_their_gradients(text: str) -> None:
    logits_BKHW, labels_BHW = batch()
    labels_BHW[3] = 255  # a sample without labels
    loss = Loss(parse_loss(text), WEIGHTS, label_smoothing=0.1)
    denominators = loss.denominators(labels_BHW)
    whole = logits_BKHW.clone().requires_grad_()
    loss(whole, labels_BHW, denominators).backward()
    parts = logits_BKHW.clone().requires_grad_()
    total = sum(loss(parts[some], labels_BHW[some], denominators) for some in (slice(0, 1), slice(1, 3), slice(3, 4)))
    total.backward()  # type: ignore[union-attr]
    torch.testing.assert_close(total, loss(logits_BKHW, labels_BHW, denominators))
    torch.testing.assert_close(parts.grad, whole.grad)


def test_cross_entropy_is_torchs() -> None:
    logits_BKHW, labels_BHW = batch()
    for smoothing in (0.0, 0.1):
        expected = functional.cross_entropy(logits_BKHW, labels_BHW, WEIGHTS, ignore_index=255, label_smoothing=smoothing)
        torch.testing.assert_close(value("cross_entropy", logits_BKHW, labels_BHW, label_smoothing=smoothing), expected)


def test_focal_is_torchvisions_for_two_classes() -> None:
    """Sigmoid focal loss of the difference of two logits, without its alpha."""
    from torchvision.ops import sigmoid_focal_loss

    logits_BKHW, labels_BHW = batch(ignored=0.0)
    logits_BKHW, labels_BHW = logits_BKHW[:, :2], labels_BHW.clamp(max=1)
    expected = sigmoid_focal_loss(logits_BKHW[:, 1] - logits_BKHW[:, 0], labels_BHW.float(), alpha=-1, gamma=2.0, reduction="mean")
    torch.testing.assert_close(value("focal", logits_BKHW, labels_BHW, torch.ones(2)), expected)


def test_dice_is_0_for_a_sure_hit_and_1_for_a_sure_miss() -> None:
    _, labels_BHW = batch(ignored=0.0)
    sure = functional.one_hot(labels_BHW, 3).permute(0, 3, 1, 2).float() * 60
    assert value("dice", sure, labels_BHW).item() == pytest.approx(0, abs=1e-5)
    assert value("dice", sure, (labels_BHW + 1) % 3).item() > 0.9


def test_dice_of_one_sample_by_hand() -> None:
    labels_BHW = torch.tensor([[[0, 0, 1, 255]]])
    shares = torch.tensor([[0.9, 0.6, 0.3, 0.5], [0.1, 0.4, 0.7, 0.5]])
    first = (2 * 1.5 + 1) / (1.8 + 2 + 1)
    second = (2 * 0.7 + 1) / (1.2 + 1 + 1)
    found = value("dice", shares.log()[None, :, None], labels_BHW, torch.ones(2))
    assert found.item() == pytest.approx(1 - (first + second) / 2, rel=1e-5)


@pytest.mark.parametrize("text", LOSSES)
def test_ignored_pixels_have_no_part_and_no_gradient(text: str) -> None:
    logits_BKHW, labels_BHW = batch()
    other = torch.where((labels_BHW == 255)[:, None], logits_BKHW + 7, logits_BKHW).requires_grad_()
    found = value(text, other, labels_BHW)
    torch.testing.assert_close(found, value(text, logits_BKHW, labels_BHW))
    found.backward()
    assert other.grad is not None and other.grad.permute(0, 2, 3, 1)[labels_BHW == 255].abs().max() == 0


def test_a_batch_without_labels_costs_nothing() -> None:
    logits_BKHW, labels_BHW = batch(ignored=1.1)
    logits_BKHW.requires_grad_()
    for text in LOSSES:
        found = value(text, logits_BKHW, labels_BHW)
        found.backward()
        assert found.item() == 0 and logits_BKHW.grad is not None and logits_BKHW.grad.abs().max() == 0


def test_words_of_a_loss() -> None:
    assert parse_loss("cross_entropy + 0.5*dice") == (Term("cross_entropy", 1.0), Term("dice", 0.5))
    for bad in ("", "hinge", "dice+", "2*", "dice*2"):
        with pytest.raises(Refused, match=r"--loss .*combine cross_entropy, focal, dice"):
            parse_loss(bad)


def numbers(seed: int = 0, unknown: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs in standard deviations, and numbers of mean 100 and standard deviation 5, of which some are unknown."""
    generator = torch.Generator().manual_seed(seed)
    numbers_BHW = 100 + 5 * torch.randn(4, 8, 6, generator=generator)
    numbers_BHW[torch.rand(numbers_BHW.shape, generator=generator) < unknown] = torch.nan
    return torch.randn(4, 1, 8, 6, generator=generator), numbers_BHW


def test_the_squared_error_is_torchs_in_standard_deviations() -> None:
    outputs_B1HW, numbers_BHW = numbers()
    loss = SquaredError(100, 5)
    known = numbers_BHW.isfinite()
    expected = functional.mse_loss(outputs_B1HW[:, 0][known], (numbers_BHW[known] - 100) / 5)
    torch.testing.assert_close(loss(outputs_B1HW, numbers_BHW, loss.denominators(numbers_BHW)), expected)


def test_parts_of_a_squared_error_add_up_and_so_do_their_gradients() -> None:
    outputs_B1HW, numbers_BHW = numbers()
    numbers_BHW[3] = torch.nan  # a sample without labels
    loss = SquaredError(100, 5)
    denominators = loss.denominators(numbers_BHW)
    whole, parts = (outputs_B1HW.clone().requires_grad_() for _ in range(2))
    expected = loss(whole, numbers_BHW, denominators)
    expected.backward()
    total = sum(loss(parts[some], numbers_BHW[some], denominators) for some in (slice(0, 1), slice(1, 3), slice(3, 4)))
    total.backward()  # type: ignore[union-attr]
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(parts.grad, whole.grad)
    assert whole.grad is not None and (whole.grad[:, 0][numbers_BHW.isnan()] == 0).all() and whole.grad.isfinite().all()


def test_a_batch_without_numbers_costs_nothing() -> None:
    outputs_B1HW, numbers_BHW = numbers(unknown=1.1)
    outputs_B1HW.requires_grad_()
    loss = SquaredError(100, 5)
    found = loss(outputs_B1HW, numbers_BHW, loss.denominators(numbers_BHW))
    found.backward()
    assert found.item() == 0 and outputs_B1HW.grad is not None and outputs_B1HW.grad.abs().max() == 0


def test_mse_stands_alone() -> None:
    assert parse_loss("mse") == (Term("mse", 1.0),)
    for bad in ("mse+dice", "0.5*mse", "cross_entropy+mse"):
        with pytest.raises(Refused, match=r"--loss .*: mse is of numbers: it stands alone"):
            parse_loss(bad)
