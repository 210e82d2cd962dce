"""The blocks of PVLR and the functions they are made of, on tensors.

Importing this loads torch, einops and jaxtyping, and no other large library. Libraries of towers are loaded with the
tower.
"""

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention, DualModalOutput, LabelRelation, RelationMap
from pvlr.core.base import base_scores
from pvlr.core.functional import (
    attend,
    attention_map,
    cosine_scores,
    fuse_maps,
    gate,
    merge_heads,
    pool_regions,
    prior_bias,
    splice_context,
    split_heads,
)
from pvlr.core.fusion import FusionBlock
from pvlr.core.head import SimilarityHead
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.losses import asymmetric_loss, binary_cross_entropy
from pvlr.core.metrics.bootstrap import Interval, bootstrap_map, percentile_interval
from pvlr.core.metrics.calibration import (
    Reliability,
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    reliability,
)
from pvlr.core.metrics.ranking import (
    PrecisionRecall,
    average_precision,
    hamming_loss,
    label_ranking_average_precision,
    mean_average_precision,
    precision_recall,
    top_k,
)
from pvlr.core.metrics.report import MultiLabelReport, ReportAccumulator, multilabel_report
from pvlr.core.mixture import Mixture, mixing_weights
from pvlr.core.models.baselines import BaselineConfig, BaselineModel
from pvlr.core.models.network import PVLR, PVLRConfig, PVLROutput
from pvlr.core.models.state import PretrainedError
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter, PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.protocols import ImageFeatures, ImageTower, PromptTokens, TextTower
from pvlr.core.residual import LabelResidual
from pvlr.core.semantic import SemanticPooling
from pvlr.core.shapes import ShapeError, expect
from pvlr.core.towers import TowerError, Towers, TowerSpec, build_towers, load_towers

__all__ = [
    "PVLR",
    "BaselineConfig",
    "BaselineModel",
    "ContextPrompter",
    "DualModalAttention",
    "DualModalOutput",
    "FusionBlock",
    "ImageFeatures",
    "ImageTower",
    "Interval",
    "KnowledgePrompter",
    "LabelError",
    "LabelRelation",
    "LabelResidual",
    "LabelSet",
    "Mixture",
    "MultiLabelReport",
    "PVLRConfig",
    "PVLROutput",
    "PrecisionRecall",
    "PretrainedError",
    "PromptBank",
    "PromptTokens",
    "RelationMap",
    "Reliability",
    "ReportAccumulator",
    "SemanticPooling",
    "ShapeError",
    "SimilarityHead",
    "TextTower",
    "TowerError",
    "TowerSpec",
    "Towers",
    "VisualAdapter",
    "asymmetric_loss",
    "attend",
    "attention_map",
    "average_precision",
    "base_scores",
    "binary_cross_entropy",
    "bootstrap_map",
    "build_towers",
    "cosine_scores",
    "encode_knowledge",
    "expect",
    "expected_calibration_error",
    "fit_temperature",
    "fit_thresholds",
    "fuse_maps",
    "gate",
    "hamming_loss",
    "label_ranking_average_precision",
    "load_label_vectors",
    "load_towers",
    "mean_average_precision",
    "merge_heads",
    "mixing_weights",
    "multilabel_report",
    "percentile_interval",
    "pool_regions",
    "precision_recall",
    "prior_bias",
    "reliability",
    "splice_context",
    "split_heads",
    "top_k",
]
