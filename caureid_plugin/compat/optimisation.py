"""Repairs so that the weights move: gradients, frozen layers, the length of an epoch, precision."""

from __future__ import annotations

import functools
import re
import warnings
import weakref
from collections.abc import Sequence

import fastreid.engine.defaults as _defaults
import fastreid.engine.hooks as _hooks
import fastreid.engine.train_loop as _train_loop
import fastreid.solver.build as _solver_build
import torch
from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.utils.params import ContiguousParams

from ..common.errors import UserError
from .importing import logger
from .registered import registered_names
from .repair import Patches, repair


def _flat_buffer_gets_no_gradient() -> bool:
    weight = torch.nn.Parameter(torch.ones(2))
    wrapper = ContiguousParams(
        [{"freeze_status": "normal", "params": [weight], "lr": 0.1, "weight_decay": 0.0}]
    )
    optimizer = torch.optim.SGD(wrapper.contiguous(), lr=0.1)
    optimizer.zero_grad()
    weight.sum().backward()
    return optimizer.param_groups[0]["params"][0].grad is None


Member = tuple[torch.nn.Parameter, torch.Tensor]  # a weight, and its place in the flat gradient


@torch.no_grad()
def _gather(members: Sequence[Member]) -> None:
    """Brings gradients that somebody has replaced, or set to None, back to their places."""
    for weight, place in members:
        if weight.grad is not place:
            place.zero_() if weight.grad is None else place.copy_(weight.grad)
            weight.grad = place


def _receive(flat: torch.Tensor, gradient: torch.Tensor, members: Sequence[Member]) -> None:
    """Has the flat gradient ready whenever a weight of the buffer is about to receive its own."""

    def make_ready(weight: torch.nn.Parameter, place: torch.Tensor, start: int, _) -> None:
        if weight.data_ptr() != start:  # in the buffer of a later optimizer
            return
        if flat.grad is None:  # zero_grad() of the optimizer
            gradient.zero_()
            flat.grad = gradient
        if weight.grad is not place:  # zero_grad() of the model
            _gather(members)

    for weight, place in members:
        if weight.requires_grad:
            hook = functools.partial(make_ready, weight, place, weight.data_ptr())
            # no warning when a whole model is saved
            weight.register_hook(torch.utils.hooks.unserializable_hook(hook))


@repair(
    upstream="utils/params.py:53-70 (make_params_contiguous), solver/build.py:180-209 "
    "(build_optimizer)",
    symptom="trains nothing, silently: zero_grad(), of the optimizer or of the model, takes the "
    "flat buffer's gradient away, later gradients go where no optimizer reads, no weight learns; "
    "nor does one where the model is moved behind its optimizer",
    versions="torch >= 2.0 (set_to_none became the default)",
    broken=_flat_buffer_gets_no_gradient,
)
def _contiguous_zero_grad(patch: Patches) -> None:
    @patch.wrap(ContiguousParams, "make_params_contiguous")
    def make_params_contiguous(make, self):
        make(self)
        self.flats: list[tuple[torch.Tensor, torch.Tensor, list[Member]]] = []
        groups = zip(self._param_buffer, self._grad_buffer, self._group_dict.values(), strict=True)
        for flat, gradient, entries in groups:
            weights = [entry["params"][0] for entry in entries]
            members = [(weight, weight.grad) for weight in weights]
            _receive(flat, gradient, members)
            self.flats.append((flat, gradient, members))

    @patch.wrap(_solver_build, "build_optimizer")
    def build_optimizer(build, cfg, model, *args, **kwargs):
        optimizer, wrapper = build(cfg, model, *args, **kwargs)
        if hasattr(wrapper, "flats"):  # it is a list where no flat buffer is asked for
            alive = weakref.ref(model)
            optimizer.register_step_pre_hook(lambda *_: _check_buffer(wrapper, alive()))
        return optimizer, wrapper


def _check_buffer(wrapper: ContiguousParams, model: torch.nn.Module | None) -> None:
    for flat, gradient, members in wrapper.flats:
        # gradients that were put there by hand, behind zero_grad() of the optimizer
        if flat.grad is None and any(weight.grad is not None and weight.grad is not place
                                     for weight, place in members):
            gradient.zero_()
            flat.grad = gradient
        _gather(members)
    known = {id(weight) for _, _, members in wrapper.flats for weight, _ in members}
    replaced = model is not None and not any(id(weight) in known for weight in model.parameters())
    if replaced or not wrapper.buffer_is_valid():
        raise UserError(
            "The optimizer moves weights that the model no longer has: the model was moved or "
            "converted (to(), cuda(), half(), load_state_dict(assign=True)), or got another "
            "optimizer, after this one was built. "
            "Call fastreid.solver.build_optimizer afterwards.")


class WeightsMovedGuard(_train_loop.HookBase):
    """Stops a run in which no weight has moved after its first steps.

    Where some layers are frozen at first, the others have to move; where all are, as in the
    toolbox's configs of MGN, the guard waits until they are free, and warns if the run is shorter.

    Args:
        steps: number of steps to wait. Mixed precision may skip steps while it looks for its loss
            scale, so :func:`_weights_guard` waits longer there.
        freeze_layers: beginnings of the names of weights (regular expressions) that the optimizer
            does not move at first (MODEL.FREEZE_LAYERS).
        freeze_iters: for how many steps (SOLVER.FREEZE_ITERS).

    Raises:
        RuntimeError: after ``steps`` steps (or at the end of a shorter run) with every parameter
            that is trained equal to its first value.
    """

    def __init__(self, steps: int = 10, freeze_layers: Sequence[str] = (),
                 freeze_iters: int = 0) -> None:
        self._steps = steps
        self._freeze_layers = freeze_layers if freeze_iters > 0 else ()
        self._freeze_iters = freeze_iters
        self._watched: list[tuple[torch.nn.Parameter, torch.Tensor]] | None = None
        self._wait = steps

    def _is_frozen(self, name: str) -> bool:
        # DistributedDataParallel is built around the model after the optimizer
        name = name.removeprefix("module.")
        return any(re.match(layer, name) for layer in self._freeze_layers)

    def before_train(self) -> None:
        trained = {name: p for name, p in self.trainer.model.named_parameters() if p.requires_grad}
        free = {name: p for name, p in trained.items() if not self._is_frozen(name)}
        self._wait = self._steps
        frozen = self._freeze_iters - self.trainer.start_iter  # of the steps of a resumed run
        if trained and not free:
            free, self._wait = trained, max(frozen, 0) + self._steps
            length = self.trainer.max_iter - self.trainer.start_iter
            if 0 < length <= frozen:
                logger.warning(
                    "This run trains nothing: MODEL.FREEZE_LAYERS %s freezes every weight for "
                    "SOLVER.FREEZE_ITERS %d steps, and the run has %d. Lower FREEZE_ITERS.",
                    list(self._freeze_layers), self._freeze_iters, length)
                return
        self._watched = [(p, p.detach().clone()) for p in free.values()]

    def after_step(self) -> None:
        if self._watched is None:
            return
        done = self.trainer.iter - self.trainer.start_iter + 1
        if done < self._wait and self.trainer.iter + 1 < self.trainer.max_iter:
            return
        watched, self._watched = self._watched, None
        if any(not torch.equal(old, new) for new, old in watched):
            return
        raise UserError(
            f"No weight has moved after {done} training steps: the optimizer is not connected to "
            "the model, every parameter is frozen, or the learning rate is 0. Check "
            "SOLVER.BASE_LR, MODEL.FREEZE_LAYERS and that `import caureid_plugin` comes before "
            "the trainer is built."
        )


@repair(
    upstream="engine/defaults.py:190-239 (DefaultTrainer.__init__)",
    symptom="nothing notices a run that does not train",
    versions="all",
)
def _weights_guard(patch: Patches) -> None:
    @patch.wrap(_defaults.DefaultTrainer, "__init__")
    def init(original, self, cfg):
        original(self, cfg)
        self.register_hooks([WeightsMovedGuard(
            30 if cfg.SOLVER.AMP.ENABLED else 10, cfg.MODEL.FREEZE_LAYERS,
            cfg.SOLVER.FREEZE_ITERS)])


@repair(
    upstream="engine/hooks.py:457-500 (LayerFreeze), solver/build.py:120-154 "
    "(_generate_optimizer_class_with_freeze_layer), :180-209 (build_optimizer)",
    symptom="MODEL.FREEZE_LAYERS: a resumed run freezes them anew for SOLVER.FREEZE_ITERS steps, "
    "an evaluation sets their batch norm back to training, `heads` is an IndexError of the first "
    "step, and a name that no weight begins with freezes nothing, silently",
    versions="all",
)
def _frozen_layers(patch: Patches) -> None:
    @patch.wrap(_solver_build, "_generate_optimizer_class_with_freeze_layer")
    def generate_(generate, optimizer, *, freeze_iters=0):
        kind = generate(optimizer, freeze_iters=freeze_iters)
        frozen_step = kind.step

        def step(self, closure=None):
            first = self.param_groups[0]  # in the optimizer's checkpoint, unlike its own counter
            done = first.setdefault(_FROZEN_STEPS, 0)
            if done >= freeze_iters:
                return optimizer.step(self, closure)
            first[_FROZEN_STEPS] = done + 1
            return frozen_step(self, closure)

        kind.step = step
        return kind

    @patch.wrap(_solver_build, "build_optimizer")
    def build_optimizer(build, cfg, model, *args, **kwargs):
        if cfg.SOLVER.FREEZE_ITERS > 0:
            _check_frozen_layers(cfg.MODEL.FREEZE_LAYERS, model)
        return build(cfg, model, *args, **kwargs)

    @patch.wrap(_hooks.LayerFreeze, "__init__")
    def init_(init, self, model, freeze_layers, freeze_iters):
        init(self, model, freeze_layers, freeze_iters)
        heads = [name for name, part in self.model.named_children() if name in freeze_layers
                 and type(part).__name__ in registered_names(REID_HEADS_REGISTRY)]
        if heads:
            raise UserError(
                f"MODEL.FREEZE_LAYERS {list(freeze_layers)} has {heads[0]!r}, the head: frozen as "
                "in evaluation, it would give no losses. Take it out, or write "
                f"'{heads[0]}.' to freeze only its weights.")

    @patch.wrap(_hooks.LayerFreeze, "before_step")
    def before_step_(before_step, self):
        # a checkpoint without it is the toolbox's
        self.trainer.optimizer.param_groups[0].setdefault(_FROZEN_STEPS, self.trainer.start_iter)
        before_step(self)
        for name, part in self.model.named_children():
            if self.is_frozen and name in self.freeze_layers:
                part.eval()


_FROZEN_STEPS = "frozen_steps"


def _check_frozen_layers(layers: Sequence[str], model: torch.nn.Module) -> None:
    for layer in layers:
        try:
            matches = any(re.match(layer, name) for name, _ in model.named_parameters())
        except re.error as error:
            raise UserError(f"MODEL.FREEZE_LAYERS {list(layers)}: {layer!r} is no regular "
                            f"expression ({error}).") from error
        if not matches:
            parts = [name for name, _ in model.named_children()]
            raise UserError(f"MODEL.FREEZE_LAYERS {list(layers)}: the name of no weight begins "
                            f"with {layer!r}; the network has {parts}.")


@repair(
    upstream="engine/defaults.py:218 (iters_per_epoch = N // batch)",
    symptom="an epoch has N // batch iterations: 0 for small data (ZeroDivisionError in the "
    "scheduler, or a run without a step), 202 for Market-1501 where the literature uses 400",
    versions="all",
)
def _iters_per_epoch(patch: Patches) -> None:
    @patch.wrap(_defaults.DefaultTrainer, "__init__")
    def init(original, self, cfg):
        self._configured_iters = int(cfg.SOLVER.get("ITERS_PER_EPOCH", 0))
        original(self, cfg)

    def get(self) -> int:
        return self._iters_per_epoch

    def put(self, value: int) -> None:
        configured = getattr(self, "_configured_iters", 0)
        if configured < 0:
            raise UserError(f"SOLVER.ITERS_PER_EPOCH {configured} must be positive, or 0 for "
                            "number of images // SOLVER.IMS_PER_BATCH.")
        count = configured or value
        if count < 1:
            raise UserError(
                f"An epoch would have {count} iterations: the training set has fewer images than "
                "SOLVER.IMS_PER_BATCH. Set SOLVER.ITERS_PER_EPOCH to a positive number or lower "
                "SOLVER.IMS_PER_BATCH."
            )
        self._iters_per_epoch = count

    patch.set(_defaults.DefaultTrainer, "iters_per_epoch", property(get, put))


@repair(
    upstream="engine/train_loop.py:335 (AMPTrainer.run_step), :325-327 (GradScaler)",
    symptom="mixed precision, which all SBS and bagtricks configs ask for, dies on the CPU with a "
    "bare assertion at the first step, after data and model are built",
    versions="all",
)
def _amp_needs_cuda(patch: Patches) -> None:
    amp = _train_loop.AMPTrainer

    @patch.wrap(amp, "__init__")
    def init(original, self, model, data_loader, optimizer, param_wrapper, grad_scaler=None):
        if not _on_cuda(model):
            logger.warning("SOLVER.AMP.ENABLED is True, but mixed precision needs a CUDA device "
                           "and this run uses the CPU: training in full precision.")
            with warnings.catch_warnings():  # the constructor says the same in other words
                warnings.simplefilter("ignore")
                grad_scaler = torch.cuda.amp.GradScaler(enabled=False)
        original(self, model, data_loader, optimizer, param_wrapper, grad_scaler)

    @patch.wrap(amp, "run_step")
    def run_step(step, self):
        # super() in a subclass's own run_step arrives here as well
        (step if _on_cuda(self.model) else _train_loop.SimpleTrainer.run_step)(self)


def _on_cuda(model: torch.nn.Module) -> bool:
    return next(model.parameters()).device.type == "cuda"
