"""Tensors in, tensors out: the blocks of PVLR and the functions they are made of.

Importing this loads torch, einops and jaxtyping, and nothing else of weight: one block costs one block. What a tower
is made of is loaded with the tower.
"""

from pvlr.core.adapter import VisualAdapter
from pvlr.core.attention import DualModalAttention, DualModalOutput, LabelRelation, RelationMap
from pvlr.core.base import base_scores
from pvlr.core.baselines import BaselineConfig, BaselineModel
from pvlr.core.bootstrap import Interval, bootstrap_map, percentile_interval
from pvlr.core.calibration import (
    Reliability,
    expected_calibration_error,
    fit_temperature,
    fit_thresholds,
    reliability,
)
from pvlr.core.decision import Decision
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
from pvlr.core.hub import PretrainedError
from pvlr.core.labels import LabelError, LabelSet
from pvlr.core.losses import asymmetric_loss, binary_cross_entropy
from pvlr.core.metrics import (
    PrecisionRecall,
    average_precision,
    hamming_loss,
    label_ranking_average_precision,
    mean_average_precision,
    precision_recall,
    top_k,
)
from pvlr.core.mixture import Mixture, mixing_weights
from pvlr.core.model import PVLR, PVLRConfig, PVLROutput
from pvlr.core.model_card import ModelCard
from pvlr.core.prompts import ContextPrompter, KnowledgePrompter, PromptBank, encode_knowledge, load_label_vectors
from pvlr.core.protocols import ImageFeatures, ImageTower, PromptTokens, TextTower
from pvlr.core.report import MultiLabelReport, ReportAccumulator, multilabel_report
from pvlr.core.residual import LabelResidual
from pvlr.core.semantic import SemanticPooling
from pvlr.core.shapes import ShapeError, expect
from pvlr.core.tags import Tag
from pvlr.core.towers import TowerError, Towers, TowerSpec, build_towers, load_towers

__all__ = [
    "PVLR",
    "BaselineConfig",
    "BaselineModel",
    "ContextPrompter",
    "Decision",
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
    "ModelCard",
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
    "Tag",
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
