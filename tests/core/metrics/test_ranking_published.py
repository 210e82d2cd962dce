"""Results of published code on the same inputs, with the reason for each difference."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from pvlr.core.metrics.ranking import (
    average_precision,
    precision_recall,
    top_k,
)

NAMES = ("ml_gcn", "tai_dpt", "tailorclip")


def golden(shared: Path, which: str) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / f"metrics_{which}.npz") as file:
        return {name: file[name] for name in file.files}


def inputs(files: dict[str, np.ndarray]) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(files["logits"]), torch.from_numpy(files["targets"])


@pytest.mark.shared
def test_without_ties_published_average_precisions_are_ours(shared: Path) -> None:
    files = golden(shared, "voc20_difficult")
    logits, target = inputs(files)
    ap = average_precision(logits, target == 1).numpy()
    for name in (*NAMES, "asl", "ram", "torchmetrics"):
        np.testing.assert_allclose(files[f"{name}_ap"], ap, atol=1e-7, err_msg=name)
    for name in ("asl", "ml_decoder", "dualcoop", "tai"):
        assert files[f"{name}_map"] == pytest.approx(100 * ap.mean(), abs=1e-5)


@pytest.mark.shared
def test_difficult_labels_are_unknown_labels_to_those_who_leave_them_out(shared: Path) -> None:
    """Targets 1 / 0 (only difficult) / −1: the 0 is what the known-mask is for."""
    files = golden(shared, "voc20_difficult")
    logits, target = inputs(files)
    ap = average_precision(logits, target == 1, known=target != 0).numpy()
    for name in ("ml_gcn_difficult", "tai_dpt_difficult", "tailorclip_difficult", "mkt"):
        np.testing.assert_allclose(files[f"{name}_ap"], ap, atol=1e-7, err_msg=name)
    # Their precision and recall do not leave them out, with or without the flag: difficult ones count as negatives.
    counted = precision_recall(logits >= 0, target == 1)
    ours = precision_recall(logits >= 0, target == 1, known=target != 0)
    theirs = files["ml_gcn_difficult_overall_OP_OR_OF1_CP_CR_CF1"]
    assert pytest.approx(theirs) == [counted.OP, counted.OR, counted.OF1, counted.CP, counted.CR, counted.CF1]
    assert pytest.approx((counted.OR, counted.CR)) == (ours.OR, ours.CR)
    assert ours.OP > counted.OP
    assert ours.CP > counted.CP


@pytest.mark.shared
def test_an_envelope_is_not_the_definition(shared: Path) -> None:
    """Query2Label interpolates: precision at a recall is the best at that recall or beyond, never below ours."""
    for which in ("voc20_difficult", "coco80_nopos2"):
        files = golden(shared, which)
        logits, target = inputs(files)
        excess = files["q2l_ap"] / 100 - average_precision(logits, target == 1).numpy()
        excess = excess[~np.isnan(excess)]
        assert (excess > -1e-12).all()
        assert excess.max() > 0.01


@pytest.mark.shared
def test_ties_are_one_threshold_whatever_the_order_of_the_file(shared: Path) -> None:
    """Code that ranks ties by their position gives other numbers for other orders of the same rows; ours does not."""
    files = golden(shared, "coco80_ties")
    logits, target = inputs(files)
    ap = average_precision(logits, target)
    np.testing.assert_allclose(files["torchmetrics_ap"], ap.numpy(), atol=1e-7)
    assert ap.mean().item() == pytest.approx(0.18967, abs=1e-5)
    for name in (*NAMES, "asl", "ram", "mkt"):
        assert np.abs(files[f"{name}_ap"] - ap.numpy()).max() > 0.03

    def by_position(scores: Tensor, truth: Tensor) -> float:
        hits = truth[scores.sort(descending=True, stable=True).indices] == 1
        return (hits.cumsum(0) / torch.arange(1, len(hits) + 1))[hits].mean().item()

    turned = torch.arange(len(logits) - 1, -1, -1)
    as_filed, backwards = (by_position(logits[order, 0], target[order, 0]) for order in (slice(None), turned))
    assert as_filed != pytest.approx(backwards, abs=1e-4)
    assert_close(average_precision(logits[turned], target[turned]), ap)


@pytest.mark.shared
def test_absent_classes_are_nan_here_and_0_or_an_error_elsewhere(shared: Path) -> None:
    files = golden(shared, "coco80_nopos2")
    logits, target = inputs(files)
    ap = average_precision(logits, target).numpy()
    absent = np.isnan(ap)
    assert absent.sum() == 2
    for name in ("tailorclip", "asl", "ram", "mkt", "torchmetrics"):
        np.testing.assert_allclose(files[f"{name}_ap"][~absent], ap[~absent], atol=1e-7, err_msg=name)
        assert (files[f"{name}_ap"][absent] == 0).all()
    assert np.isnan(files["ml_gcn_ap"]).all()  # One absent class spoils all eighty.
    # Counting two zeros makes a mean over 80 of what is a mean over 78.
    assert files["asl_map"] == pytest.approx(100 * np.nanmean(ap) * 78 / 80, abs=1e-5)
    found = precision_recall(logits >= 0, target)
    theirs = dict(zip(("OP", "OR", "OF1", "CP"), files["ml_gcn_overall_OP_OR_OF1_CP_CR_CF1"], strict=False))
    assert pytest.approx((theirs["OP"], theirs["OR"], theirs["OF1"])) == (found.OP, found.OR, found.OF1)
    assert theirs["CP"] == pytest.approx(found.CP * 78 / 80)
    assert np.isnan(files["ml_gcn_overall_OP_OR_OF1_CP_CR_CF1"][4:]).all()


@pytest.mark.shared
@pytest.mark.parametrize("which", ["voc20_difficult", "coco80_ties"])
def test_precision_and_recall_at_a_half_are_the_published_ones(shared: Path, which: str) -> None:
    files = golden(shared, which)
    logits, target = inputs(files)
    found = precision_recall(logits >= 0, target == 1)
    for name in NAMES:
        theirs = files[f"{name}_overall_OP_OR_OF1_CP_CR_CF1"]
        assert pytest.approx(theirs) == [found.OP, found.OR, found.OF1, found.CP, found.CR, found.CF1], name
    # DualCoOp's "CF1" is the mean of the classes' F1, and it predicts above the threshold, not from it on.
    for threshold in (0.5, 0.8):
        found = precision_recall(torch.sigmoid(logits) > threshold, target == 1)
        theirs = files[f"dualcoop_validate_thr{threshold}_PC_RC_FC_PO_RO_FO_mAP"][:6] / 100
        assert [found.CP, found.CR, found.mean_F1, found.OP, found.OR, found.OF1] == pytest.approx(theirs)
        assert found.mean_F1 != pytest.approx(found.CF1, abs=1e-5)


@pytest.mark.shared
def test_the_two_conventions_of_top_3(shared: Path) -> None:
    files = golden(shared, "voc20_difficult")
    logits, target = inputs(files)
    probabilities = torch.sigmoid(logits)
    sure = precision_recall(top_k(probabilities, 3, threshold=0.5), target == 1)
    for name in (*NAMES, *(f"{name}_difficult" for name in NAMES)):  # Difficult ones count as negatives here too.
        theirs = files[f"{name}_top3_OP_OR_OF1_CP_CR_CF1"]
        assert pytest.approx(theirs) == [sure.OP, sure.OR, sure.OF1, sure.CP, sure.CR, sure.CF1], name
    always = precision_recall(top_k(probabilities, 3), target == 1)
    theirs = files["dualcoop_zsl_top3_P_R_F1"] / 100
    assert pytest.approx(tuple(theirs)) == (always.OP, always.OR, always.OF1)
    assert pytest.approx(tuple(files["mkt_top3_F1_P_R"])) == (always.OF1, always.OP, always.OR)
    five = precision_recall(top_k(probabilities, 5), target == 1)
    assert pytest.approx(tuple(files["mkt_top5_F1_P_R"])) == (five.OF1, five.OP, five.OR)


@pytest.mark.shared
def test_top_3_with_absent_classes(shared: Path) -> None:
    """Every top-3 score is above 0.5 here, so that both conventions agree; absent classes are where others differ."""
    files = golden(shared, "coco80_nopos2")
    logits, target = inputs(files)
    probabilities = torch.sigmoid(logits)
    found = precision_recall(top_k(probabilities, 3), target)
    assert found == precision_recall(top_k(probabilities, 3, threshold=0.5), target)
    for name in NAMES:
        theirs = files[f"{name}_top3_OP_OR_OF1_CP_CR_CF1"]
        assert pytest.approx(tuple(theirs[:3])) == (found.OP, found.OR, found.OF1)
        # They count the two classes as precision 0, and divide by their zero positives for the recall.
        assert theirs[3] == pytest.approx(found.CP * 78 / 80)
        assert np.isnan(theirs[4:]).all()
    assert pytest.approx(tuple(files["dualcoop_zsl_top3_P_R_F1"] / 100)) == (found.OP, found.OR, found.OF1)
    assert pytest.approx(tuple(files["mkt_top3_F1_P_R"])) == (found.OF1, found.OP, found.OR)


@pytest.mark.shared
def test_which_of_tied_labels_are_top_3_is_arbitrary_and_two_libraries_differ(shared: Path) -> None:
    files = golden(shared, "coco80_ties")
    logits, target = inputs(files)
    found = precision_recall(top_k(torch.sigmoid(logits), 3), target).OP
    theirs = files["dualcoop_zsl_top3_P_R_F1"][0] / 100
    assert theirs != pytest.approx(files["mkt_top3_F1_P_R"][1], abs=1e-4)
    assert found == pytest.approx(theirs, abs=0.005)
