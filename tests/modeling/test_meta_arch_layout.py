"""CAUReID in mixed precision and with channels-last feature maps: the same losses, the same steps.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from fastreid.engine.train_loop import SimpleTrainer
from fastreid.modeling.meta_arch import build_model
from fastreid.solver import build_optimizer
from fastreid.utils.events import EventStorage

PLAIN = []
OSNET = ["MODEL.BACKBONE.NAME", "build_osnet_backbone", "MODEL.BACKBONE.DEPTH", "x0_25",
         "MODEL.BACKBONE.FEAT_DIM", 128]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture
def make_model(make_cfg, make_bank):
    """CAUReID in training, with a bank and attention that is no longer uniform."""

    def make(*options):
        cfg = make_cfg(*options)
        torch.manual_seed(1)
        model = build_model(cfg).train()
        torch.nn.init.normal_(model.heads.attention.combine[1].weight)
        model.memory = make_bank(cfg.MODEL.BACKBONE.FEAT_DIM)
        return model

    return make


def watch_head(model):
    """Lists that receive what goes into the head and what comes out of it."""
    maps, outputs = [], []
    model.heads.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    model.heads.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    return maps, outputs


def double_images(batch):
    return {**batch, "images": batch["images"].double()}


def layouts_of(tensor):
    return [f for f in LAYOUTS if tensor.is_contiguous(memory_format=f)]


# ------------------------------------------------------------------- mixed precision ----


def test_losses_and_bank_are_float32_under_autocast(make_model, make_batch):
    model, batch = make_model(), make_batch()
    maps, outputs = watch_head(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(batch)
    assert maps[0].dtype == torch.bfloat16  # the network itself runs in low precision
    assert outputs[0]["features"].dtype == outputs[0]["camera_logits"].dtype == torch.bfloat16
    assert {value.dtype for value in found.values()} == {torch.float32}
    seen, indexes = model.pop_seen()
    expected = model.losses({name: value.float() for name, value in outputs[0].items()}, batch)
    assert len(found) == 3  # bfloat16 would be off by 1e-3 or more
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    sum(found.values()).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert seen.dtype == torch.float32 and not seen.requires_grad
    torch.testing.assert_close(seen, F.normalize(outputs[0]["features"].detach().float(), dim=1))
    moved = F.normalize(0.2 * model.memory.features[indexes] + 0.8 * seen, dim=1)
    model.memory.update(seen, indexes)
    assert model.memory.features.dtype == torch.float32
    torch.testing.assert_close(model.memory.features[indexes], moved)


# --------------------------------------------------------------------- memory layout ----


@pytest.mark.parametrize("backbone, training, channels_last", [
    (OSNET, True, True), (PLAIN, True, True), (PLAIN, True, False), (PLAIN, False, True)])
def test_layout_of_the_feature_map_at_the_head(
        make_model, make_batch, backbone, training, channels_last):
    model = make_model(*backbone, "MODEL.CHANNELS_LAST", channels_last).train(training)
    maps = watch_head(model)[0]
    weights = {name: layouts_of(p) for name, p in model.named_parameters() if p.dim() == 4}
    for layout in LAYOUTS:  # whatever the layout of what comes in
        batch = make_batch()
        batch["images"] = batch["images"].contiguous(memory_format=layout)
        before = batch["images"].clone()
        model(batch)
        assert torch.equal(batch["images"], before) and layouts_of(batch["images"]) == [layout]
    assert [layouts_of(found) for found in maps] == [[LAYOUTS[channels_last]]] * 2
    assert weights == {name: layouts_of(p) for name, p in model.named_parameters() if p.dim() == 4}
    assert all(torch.contiguous_format in found for found in weights.values())


def test_channels_last_gives_the_same_losses_and_gradients(make_model, make_batch):
    model = make_model().double()
    other = make_model("MODEL.CHANNELS_LAST", True).double()
    other.load_state_dict(model.state_dict())
    batch = double_images(make_batch())
    found = []
    for either in (model, other):
        result = either(batch)
        sum(result.values()).backward()
        found.append(result)
    # The network is float64 here, but losses are float32: logits up to 1 / t = 20 carry a
    # rounding of 20 x 6e-8, about 1e-6, which is the relative error of losses and gradients.
    assert list(found[0]) == list(found[1])
    for name, value in found[0].items():
        assert found[1][name].item() == pytest.approx(value.item(), rel=1e-5), name
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    largest = max(gradient.abs().max() for gradient in gradients.values())
    for name, parameter in other.named_parameters():
        if parameter.requires_grad:
            expected = gradients[name]
            # a bias in front of a batch norm has no gradient but rounding
            atol = 1e-5 * expected.abs().max().item() + 1e-10 * largest.item()
            torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=atol, msg=name)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(other.named_buffers())[name], buffer, rtol=1e-9, atol=1e-9)


def test_the_flat_optimizer_moves_the_weights_as_plain_adam_does(
        make_model, make_cfg, make_batch):
    decay = 5e-4
    cfg = make_cfg("SOLVER.OPT", "Adam", "SOLVER.BASE_LR", 1e-3, "SOLVER.WEIGHT_DECAY",
                   decay, "SOLVER.WEIGHT_DECAY_NORM", decay, "SOLVER.WEIGHT_DECAY_BIAS", decay)
    # float64: Adam's first steps hardly depend on a gradient's size, so that rounding grows
    model = make_model("MODEL.CHANNELS_LAST", True).double()
    plain, start = copy.deepcopy(model), copy.deepcopy(model)
    batches = [double_images(make_batch(seed)) for seed in range(3)]

    optimizer, wrapper = build_optimizer(cfg, model)
    trainer = SimpleTrainer(model, batches, optimizer, wrapper)
    with EventStorage(0):
        for trainer.iter in range(3):
            trainer.run_step()
    assert wrapper.buffer_is_valid()

    adam = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=1e-3,
                            weight_decay=decay)
    for batch in batches:
        adam.zero_grad()
        sum(plain(batch).values()).backward()
        adam.step()
    for (name, moved), expected, first in zip(
            model.named_parameters(), plain.parameters(), start.parameters(), strict=True):
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-9, msg=name)
        if moved.dim() == 4:  # a bias may sit behind a ReLU that never opens
            assert (moved - first).abs().max() > 1e-4, name
