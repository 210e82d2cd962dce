"""open_clip's image towers: patch vectors and the pooled vector, both in the joint space."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pvlr.core.protocols import ImageFeatures
from pvlr.core.shapes import expect
from pvlr.core.towers.errors import TowerError
from pvlr.core.towers.image.blocks import PatchFeatures, run_block, run_block_twice
from pvlr.core.towers.image.families import family_of

__all__ = ["OpenClipImageTower"]


class OpenClipImageTower(nn.Module):
    """The image half of an open_clip model. It starts frozen; :meth:`set_trainable` unfreezes it.

    ``patch_features="value"`` takes the value path of the last attention without its attention (MaskCLIP,
    arXiv 2112.01071; for ResNets as DualCoOp does, arXiv 2206.09541): CLIP aligns the pooled vector with text, and the
    pooled vector is a mixture of these vectors. ``"final"`` takes the last block's own output. For timm's networks both
    are the output of the tower's own pooling and head for one position alone.

    | tower | ``"value"`` | ``"final"`` |
    |---|---|---|
    | VisionTransformer | last block without its attention, norm, projection | last block, norm, projection |
    | ModifiedResNet | attention pool's value and output projections | attention pool's output at each position |
    | timm, class token (EVA, MobileCLIP-B) | last block, each token attending to itself, norm, head | norm, head |
    | timm, attention pool (SigLIP, PE-Core) | the pool's value path for each token, its MLP, head | norm, head |
    | timm, mean of tokens (ViTamin) | norm, head: the mean of one token is that token | the same |
    | timm, feature map (ConvNeXt, FastViT, Swin, EfficientNet) | pooling and head of a map of one position | the same |

    Attributes:
        dim: Width of the joint space (``d``).
        source_dim: Width of the features the pooled vector is computed from, where that is no projection; else 0.
        own_dim: Width of the features each patch vector is computed from, where it is larger than ``dim``; else 0.
        image_size: Side of the square images it takes, in pixels.
        grid: Patches along one side; ``n = grid²``, row by row.
        patch_features: The kind of patch vectors it returns.
        trainable: ``"frozen"``, ``"all"`` or the number of last blocks that are trained.
        gradient_checkpointing: Whether the backward pass runs its blocks a second time: the same gradients from less
            memory.
        thread_safe: Whether several threads may call it at once.
    """

    thread_safe = True

    def __init__(self, visual: nn.Module, *, patch_features: PatchFeatures = "value") -> None:
        """Wrap an open_clip model's ``visual``.

        Args:
            visual: An open_clip ``VisionTransformer``, ``ModifiedResNet`` or ``TimmModel``; its parameters are shared,
                and its dropout (of blocks, patches, units) is switched off.
            patch_features: ``"value"`` or ``"final"``.

        Raises:
            TowerError: naming the class or setting that is not supported.
        """
        super().__init__()
        if patch_features not in ("value", "final"):
            raise TowerError(f"patch_features: expected 'value' or 'final', got '{patch_features}'")
        visual.eval()  # its head is run once to find its width, and may hold statistics of batches
        self._family = family_of(visual, patch_features)
        self.visual = visual
        self.patch_features: PatchFeatures = patch_features
        self.image_size = self._family.size
        self.dim = self._family.dim
        self.source_dim, self.own_dim = self._family.source_dim, self._family.own_dim
        # Fixed sine positions are parameters that must never be trained.
        self._fixed = {name for name, parameter in self.named_parameters() if not parameter.requires_grad}
        self.trainable: Literal["frozen", "all"] | int = "frozen"
        self.gradient_checkpointing = False
        self.set_trainable("frozen")

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self._family.stride

    @property
    def blocks(self) -> int:
        """Number of blocks that :meth:`set_trainable` counts."""
        return len(self._family.blocks(self.visual))

    def check_image_size(self, image_size: int) -> None:
        """Require a size that the tower can take.

        Raises:
            TowerError: the size is neither the tower's own nor a positive multiple of its patch size.
        """
        stride = self._family.stride
        if image_size != self.image_size and (image_size < stride or image_size % stride):
            raise TowerError(f"image_size: expected a positive multiple of {stride}, the patch size, got {image_size}")

    def set_image_size(self, image_size: int) -> None:
        """Set the size of images.

        Position embeddings are interpolated (bicubic, antialiased), tables of relative positions and windows resized as
        in timm; a network of convolutions alone needs no change.

        Raises:
            TowerError: see :meth:`check_image_size`.
        """
        self.check_image_size(image_size)
        if image_size != self.image_size:
            self._family.resize(self.visual, image_size)
            self.image_size = image_size
            self.set_trainable(self.trainable)  # older versions of timm unfreeze the tables they resize

    def set_trainable(self, mode: Literal["frozen", "all"] | int) -> None:
        """Set the trained parts; all others stay in evaluation mode even after ``train()``.

        Args:
            mode: ``"frozen"``, ``"all"``, or a number ``k``: the last ``k`` blocks and all that follows them.

        Raises:
            TowerError: any other mode; a tower that was frozen as a whole before this class wrapped it.
        """
        if mode not in ("frozen", "all") and (
            not isinstance(mode, int) or not 1 <= mode <= self.blocks or mode is True
        ):
            raise TowerError(f"trainable: expected 'frozen', 'all' or 1 to {self.blocks} blocks, got {mode!r}")
        if mode != "frozen" and len(self._fixed) == len(list(self.parameters())):
            raise TowerError("trainable: every parameter of the image tower was frozen when it was taken over")
        self.trainable = mode
        self.requires_grad_(False)
        for part in self._trained_parts():
            part.requires_grad_(True)
        for name, parameter in self.named_parameters():
            if name in self._fixed:
                parameter.requires_grad_(False)
        self.train(self.training)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Enable or disable running the blocks again in the backward pass, instead of storing their activations."""
        self.gradient_checkpointing = enabled

    def parameter_depths(self) -> dict[str, int]:
        """Return the depth of each parameter by name: 0 before the blocks, the block's number from 1, then one more."""
        blocks = self._family.blocks(self.visual)
        depths = {
            id(parameter): depth
            for depth, block in enumerate(blocks, 1)
            for part in block
            for parameter in part.parameters()
        }
        for part in self._family.tail(self.visual):
            of = part.parameters() if isinstance(part, nn.Module) else (part,)
            depths |= {id(parameter): len(blocks) + 1 for parameter in of}
        return {name: depths.get(id(parameter), 0) for name, parameter in self.named_parameters()}

    def trained_state_dict(self) -> dict[str, Tensor]:
        """Return the trained parameters and the buffers (BatchNorm statistics) of the trained parts, by name."""
        parts = [[part] if isinstance(part, nn.Parameter) else part.parameters() for part in self._trained_parts()]
        chosen = {id(parameter) for part in parts for parameter in part}
        names = {name for name, value in self.named_parameters() if id(value) in chosen and name not in self._fixed}
        trained = {id(module) for part in self._trained_modules() for module in part.modules()}
        for prefix, module in self.named_modules():
            if id(module) in trained:
                names |= {f"{prefix}.{name}" for name, _ in module.named_buffers(recurse=False)}
        return {name: tensor for name, tensor in self.state_dict().items() if name in names}

    def train(self, mode: bool = True) -> "OpenClipImageTower":
        """Put the trained parts, and only those, into training mode."""
        super().train(False)
        if mode and self.trainable != "frozen":
            self.training = True
            for part in self._trained_modules():
                part.train(True)
        return self

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> ImageFeatures:
        """Encode normalised images.

        Args:
            images: ``b 3 s s`` with ``s = image_size``, normalised by the tower's mean and standard deviation.

        Returns:
            Patches ``b n d`` and the pooled vector ``b d``, which is open_clip's ``encode_image``; neither normalised;
            and the features it was computed from, where ``source_dim`` is not 0, and those of the patches, where
            ``own_dim`` is not 0.

        Raises:
            ShapeError: the images are of another size.
        """
        size = self.image_size
        expect("images", images, "b rgb height width", dtype="float", rgb=3, height=size, width=size)
        run = run_block_twice if self.gradient_checkpointing and torch.is_grad_enabled() else run_block
        return self._family.features(self.visual, images, self.patch_features, run)

    def extra_repr(self) -> str:
        """Return the settings, for ``repr``."""
        return (
            f"patch_features={self.patch_features!r}, image_size={self.image_size}, grid={self.grid}, dim={self.dim}, "
            f"trainable={self.trainable!r}"
        )

    def _trained_parts(self) -> list[nn.Module | nn.Parameter]:
        if self.trainable == "all":
            return [self.visual]
        if self.trainable == "frozen":
            return []
        blocks = self._family.blocks(self.visual)[-self.trainable :]
        return [*(part for block in blocks for part in block), *self._family.tail(self.visual)]

    def _trained_modules(self) -> list[nn.Module]:
        return [part for part in self._trained_parts() if isinstance(part, nn.Module)]
