"""Laws of every block and every function in every configuration; the table is ``contract_cases.MATRIX``."""

import inspect
import runpy
from contextlib import AbstractContextManager
from unittest import mock

import einops
import pytest
import torch
from helpers import contract_cases, model_toys
from helpers.contract_cases import BLOCKS, MATRIX, OPEN, OTHER, TOGETHER, Case, again
from helpers.model_toys import build
from helpers.strategies import Draw, backward
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import pvlr.core
from pvlr.core import functional as lib
from pvlr.core import shapes
from pvlr.core.attention import RelationMap
from pvlr.core.block import Block
from pvlr.core.labels import LabelSet
from pvlr.core.models.network import PVLR, PVLRConfig
from pvlr.core.towers import load_towers

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def every(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


def same(found: tuple[Tensor, ...], wanted: tuple[Tensor, ...], **close: float) -> None:
    assert len(found) == len(wanted) > 0
    for a, b in zip(found, wanted, strict=True):
        assert_close(a, b, **(close or EXACT))


def named_blocks(cases: list[Case]) -> list[tuple[str, Block]]:
    return [(case.name, part) for case in cases for part in case.parts() if isinstance(part, Block)]


# --- the table


def test_the_table_has_every_block_of_the_package_and_varies_every_option() -> None:
    blocks = {x for x in vars(pvlr.core).values() if isinstance(x, type) and issubclass(x, Block)}
    seen: dict[type, list[dict]] = {}
    for _, block in named_blocks(BLOCKS):
        seen.setdefault(type(block), []).append(block.config)
    assert set(seen) >= blocks
    for kind, configs in seen.items():
        for option in configs[0].keys() - {"dim", "heads"}:
            assert len({config[option] for config in configs}) > 1, f"{kind.__name__}({option}=) is never varied"


# --- torch.compile and torch.export

# The assembled cases are one graph through every line of these; tracing each on its own would take the time twice.
INSIDE = {
    "relation", "relation-batch", "knowledge", "knowledge-projected", "context", "fusion",
    "fusion-of-image", "dual", "dual-deep", "dual-own", "dual-labels", "dual-patches", "dual-wide",
    "multi-head", "multi-head-zero", "multi-head-wide", "adapter", "adapter-whole", "semantic-gathered", "residual",
    "residual-rows", "head", "head-own", "head-all", "mixture", "mixture-no-base",
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@every([case for case in MATRIX if case.name not in INSIDE])
def test_one_compiled_graph_is_the_module_at_any_size_forward_and_backward(case: Case) -> None:
    torch.compiler.reset()
    module = case.build()
    compiled = torch.compile(module, fullgraph=True, backend="eager", dynamic=True)
    leaves = {name: x for name, x in module.named_parameters() if x.requires_grad}
    # A tracer cannot look into what jaxtyping makes of the methods of a tuple that the graph itself made.
    plain = mock.patch.object(RelationMap, "attend", inspect.unwrap(RelationMap.attend))
    with plain, torch._dynamo.config.patch(error_on_recompile=True):
        # A tracer takes axes of one size for one axis, so these are all different.
        for sizes in ({"b": 5, "c": 6, "n": 10}, {"b": 6, "c": 8, "n": 11}):
            gradients = []
            for run in (compiled, module):
                inputs = case.inputs(**sizes)
                learnt = [inputs[i].requires_grad_() for i in case.floats()] + list(leaves.values())
                module.zero_grad()
                out = run(*inputs)
                if any(x.requires_grad for x in out):
                    backward(out)
                gradients.append((out, [None if x.grad is None else x.grad.clone() for x in learnt]))
            same(gradients[0][0], gradients[1][0])
            for a, b in zip(gradients[0][1], gradients[1][1], strict=True):
                assert (a is None) == (b is None)
                if a is not None:
                    assert_close(a, b, **EXACT)


def exported(module: nn.Module, inputs: tuple[Tensor, ...], dynamic: tuple) -> nn.Module:
    program = torch.export.export(module, inputs, dynamic_shapes={"inputs": dynamic})
    return program.module()


@pytest.mark.usefixtures("unchecked")
@every(MATRIX)
def test_one_exported_program_serves_any_number_of_images_labels_and_patches(case: Case) -> None:
    module = case.build()
    program = exported(module, case.inputs(), case.dynamic({axis: torch.export.Dim(axis) for axis in OPEN}))
    for sizes in OTHER:
        inputs = case.inputs(seed=1, **sizes)
        same(program(*inputs), module(*inputs))


# The vectors of an image: the pooled one, what it was made of, and two patches. With one of them alone a tracer would
# hold the number of patches, which is that of the vectors less the others, for a constant.
LEAST = 3 + -(-getattr(model_toys.ToyImage(), "source_dim", 0) // model_toys.DIM)


class Logits(nn.Module):
    """A model from tensors to logits: from patches, or from images."""

    def __init__(self, model: nn.Module, *, images: bool) -> None:
        super().__init__()
        self.model, self.images = model, images

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*inputs).logits if self.images else self.model.forward_features(*inputs).logits


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("images", [False, True])
def test_one_exported_model_serves_any_number_of_images_and_patches(images: bool) -> None:
    model = build({"heads": 2, "feedforward": 3})
    b, m = torch.export.Dim("b"), torch.export.Dim("m", min=LEAST)
    if not images:
        module, dynamic = Logits(model, images=False), {0: b, 1: m}
        sizes = [(2, LEAST + 3, 8), (1, LEAST, 8), (3, LEAST + 6, 8)]
    else:
        module, sizes, dynamic = Logits(model, images=True), [(2, 3, 12, 12), (1, 3, 12, 12), (5, 3, 12, 12)], {0: b}
    program = exported(module, (Draw(0).normal(*sizes[0]),), (dynamic,))
    for shape in sizes[1:]:
        x = Draw(1).normal(*shape)
        assert_close(program(x), module(x), **EXACT)


@pytest.mark.usefixtures("unchecked")
def test_one_exported_image_tower_serves_any_number_of_images() -> None:
    tower = load_towers("pvlr:scenes-clip").image
    program = torch.export.export(tower, (torch.zeros(2, 3, 128, 128),), dynamic_shapes=({0: torch.export.Dim("b")},))
    for count in (1, 3):
        images = Draw(0, torch.float32).normal(count, 3, 128, 128)
        # In float32, where a batch is summed in another order than another.
        assert_close(program.module()(images).patches, tower(images).patches, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("unchecked")
def test_what_is_called_meanwhile_does_not_make_a_graph_be_traced_again() -> None:
    torch.compiler.reset()
    compiled = torch.compile(lib.gate, fullgraph=True, backend="eager", dynamic=True)
    # As in a process of its own, in which nothing but the import came first.
    with mock.patch.dict(einops._backends._type2backend, clear=True):
        runpy.run_path(shapes.__file__)
        compiled(*torch.zeros(3, 4, 5))
        lib.splice_context(torch.zeros(3, 6, 2), nn.Parameter(torch.zeros(4, 2)), 1)
        with torch._dynamo.config.patch(error_on_recompile=True):
            compiled(*torch.zeros(3, 6, 7))


# --- torch.func


def apply(module: nn.Module, parameters: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return functional_call(module, parameters, inputs)


@every(BLOCKS + TOGETHER)
def test_called_with_other_parameters_it_is_the_module_that_has_them(case: Case) -> None:
    module, other, inputs = case.build(seed=1), case.build(seed=2), case.inputs()
    before = [x.clone() for x in module(*inputs)]
    found = apply(module, dict(other.named_parameters()), inputs)
    for a, b in zip(found, other(*inputs), strict=True):
        assert torch.equal(a, b)
    # A context is read where prompts are encoded, and by nothing that follows.
    if any(".context" not in name for name, _ in module.named_parameters()):
        assert any(not torch.equal(a, b) for a, b in zip(found, before, strict=True))
    for a, b in zip(module(*inputs), before, strict=True):
        assert torch.equal(a, b)


def problems(case: Case) -> list[tuple[Tensor, ...]]:
    return [case.inputs(seed=seed) for seed in range(3)]


def stacked(case: Case) -> tuple[Tensor, ...]:
    return tuple(torch.stack(parts) for parts in zip(*problems(case), strict=True))


# The fused attention of the CPU has no rule for vmap: it falls back to a loop, and torch warns that it does.
def batched() -> AbstractContextManager[None]:
    return sdpa_kernel(SDPBackend.MATH)


@every(MATRIX)
def test_mapped_over_problems_it_is_the_loop_over_them(case: Case) -> None:
    module = case.build()
    with batched():
        found = vmap(module)(*stacked(case))
    wanted = [torch.stack(parts) for parts in zip(*(module(*inputs) for inputs in problems(case)), strict=True)]
    same(found, tuple(wanted))


@every([case for case in BLOCKS + TOGETHER if any(True for _ in case.build().parameters())])
def test_mapped_gradients_of_problems_are_those_of_the_loop(case: Case) -> None:
    module = case.build()
    parameters = {name: x.detach() for name, x in module.named_parameters()}

    weights = [Draw(5).normal(*x.shape) for x in module(*case.inputs())]

    def loss(parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
        return sum((w * x).sum() for w, x in zip(weights, apply(module, parameters, inputs), strict=True))

    with batched():
        found = vmap(grad(loss), in_dims=(None, *(0 for _ in case.axes)))(parameters, *stacked(case))
    for i, inputs in enumerate(problems(case)):
        wanted = grad(loss)(parameters, *inputs)
        for name in parameters:
            assert_close(found[name][i], wanted[name], **EXACT)


# --- dtype and device


@every(MATRIX)
def test_bf16_autocast_is_close_and_scores_are_float32(case: Case) -> None:
    module, inputs = case.build(dtype=torch.float32), case.inputs(dtype=torch.float32)
    wanted = module(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = module(*inputs)
    if case.scores:
        assert {x.dtype for x in found} == {torch.float32}
    # bfloat16 has eight bits: one rounding is 0.4 %, and some follow one another.
    same(tuple(x.float() for x in found), wanted, rtol=0.05, atol=0.05)


@every(MATRIX)
def test_float64_in_is_float64_out(case: Case) -> None:
    module = case.build(dtype=torch.float32)
    narrow = module(*case.inputs(dtype=torch.float32))
    wide = module.double()(*case.inputs())
    assert {x.dtype for x in wide} == {torch.float64}
    same(tuple(x.float() for x in wide), narrow, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
def test_a_whole_model_in_half_precision_is_close_and_its_scores_are_float32(learn: bool, width: torch.dtype) -> None:
    towers = load_towers("pvlr:scenes-clip")
    config = PVLRConfig(learn=learn)
    model = PVLR(config, LabelSet(("red_circle", "blue_square")), towers.text, towers.image).eval()
    images = Draw(0, torch.float32).normal(2, 3, 128, 128)
    wanted = model(images).logits
    found = model.to(width)(images.to(width)).logits
    assert found.dtype == torch.float32
    assert_close(found, wanted, rtol=0.05, atol=0.05)
    assert model.train()(images.to(width)).logits.dtype == torch.float32


@every(MATRIX)
@pytest.mark.parametrize("gradients", [True, False])
def test_on_the_meta_device_it_tells_shapes_and_dtypes_without_computing(case: Case, gradients: bool) -> None:
    module, inputs = case.build(dtype=torch.float32), case.inputs(dtype=torch.float32)
    wanted = module(*inputs)
    with torch.set_grad_enabled(gradients):
        found = module.to("meta")(*(x.to("meta") for x in inputs))
    assert [(x.shape, x.dtype) for x in found] == [(x.shape, x.dtype) for x in wanted]
    assert {x.device.type for x in found} == {"meta"}


@every([case for case in BLOCKS if not case.name.startswith("encode")])
def test_made_on_the_meta_device_and_given_a_state_it_is_the_block_of_that_state(case: Case) -> None:
    module, inputs = case.build(), case.inputs()
    with torch.device("meta"):
        empty = contract_cases.Flat(case.use, *case.parts()).double()
    assert {x.device.type for x in empty.parameters()} <= {"meta"}
    empty.to_empty(device="cpu").load_state_dict(module.state_dict())
    for a, b in zip(empty(*inputs), module(*inputs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("training", [True, False])
def test_a_whole_model_on_the_meta_device_tells_shapes(training: bool) -> None:
    model = build({"heads": 2}).to("meta").train(training)
    with torch.no_grad():
        out = model(torch.zeros(3, 3, 12, 12, dtype=torch.float64, device="meta"), maps=True)
    assert (out.logits.shape, out.label_maps[0].shape) == ((3, 5), (3, 2, 5, 9))
    assert out.logits.device.type == "meta"


# --- configuration


@pytest.mark.parametrize(("name", "block"), named_blocks(BLOCKS), ids=[name for name, _ in named_blocks(BLOCKS)])
def test_its_configuration_and_its_repr_make_the_same_block(name: str, block: Block) -> None:
    def state(make: object) -> dict[str, tuple[list, bool]]:
        torch.manual_seed(0)
        made = make()
        assert (type(made), made.config, repr(made)) == (type(block), block.config, repr(block))
        held = (*made.named_parameters(), *made.named_buffers())
        return {name: (x.tolist(), x.requires_grad) for name, x in held}

    # All of them: what is made of a configuration cannot show what the configuration leaves out.
    assert block.config.keys() == inspect.signature(type(block)).parameters.keys()
    wanted = state(lambda: type(block)(**block.config))
    assert state(lambda: again(block)) == wanted
    assert state(lambda: eval(repr(block), vars(contract_cases).copy())) == wanted  # noqa: S307
    assert wanted.keys() == block.state_dict().keys()


def test_a_configuration_that_was_given_away_changes_no_block() -> None:
    _, block = named_blocks(BLOCKS)[0]
    block.config["dim"] = 99
    assert block.config["dim"] == contract_cases.DIM
