"""A second device without one: its tensors hold numbers in host memory, and refuse to meet those of the CPU as CUDA's do.

PyTorch keeps a place for a device that it does not know (`PrivateUse1`). Here it is taken by `second`: every operator that
reaches it is done by the CPU on the same memory, after a look at where its arguments are. The place cannot be given back, so
all this is for a process of its own: `register()` comes first there, then `fit(…)` is a run on the device.

What differs from CUDA: nothing is asynchronous, there is no autocast, no fused kernel (attention is the plain one) and no
quantisation.

Private parts of PyTorch that this needs: `_setup_privateuseone_for_python_backend` in `torch.utils.backend_registration`,
`torch._C._acc` and `torch._C._construct_storage_from_data_pointer`.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils import backend_registration

from rlhf_lightning.__main__ import main
from rlhf_lightning.console import print_first_time
from rlhf_lightning.generation.base import GenerationRequest
from rlhf_lightning.generation.local import Sampler
from rlhf_lightning.models.backbone import backbone_of, supports_packing
from rlhf_lightning.models.loading import ModelConfig, load_causal_lm
from rlhf_lightning.rewards import retry_and_timeout
from rlhf_lightning.rollouts import reference_cache, rollout_loader
from rlhf_lightning.run import checkpoints, out_of_memory
from rlhf_lightning.seeding import Randomness
from rlhf_lightning.stages import reward
from rlhf_lightning.training import memory, random_states, resume, validation

NAME = "second"
aten = torch.ops.aten
CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)


def missing() -> str | None:
    """What this torch lacks to pretend a device; None where it can."""
    needed = [(backend_registration, "_setup_privateuseone_for_python_backend"), (torch._C, "_acc")]
    needed.append((torch._C, "_construct_storage_from_data_pointer"))
    lacking = [name for owner, name in needed if not hasattr(owner, name)]
    return f"torch {torch.__version__} has no {lacking[0]}" if lacking else None


# -- memory ------------------------------------------------------------------------------------------------------------


def _there(x: object) -> bool:
    return isinstance(x, Tensor) and x.device.type == NAME


def _host(tensor: Tensor) -> Tensor:
    """A CPU tensor on the memory of one of the device."""
    memory = tensor.untyped_storage()._host
    return torch.empty(0, dtype=tensor.dtype).set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())


def _bound(tensor: Tensor, host: Tensor) -> Tensor:
    """A tensor of the device, which now shows the memory of a CPU tensor."""
    memory = host.untyped_storage()
    storage = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), torch.device(NAME, 0), memory.nbytes())
    storage._host = memory  # lives as long as the device's storage
    place = (storage, host.storage_offset(), host.shape, host.stride())
    return aten.set_.source_Storage_storage_offset.redispatch(CPU, tensor, *place)


# -- operators ---------------------------------------------------------------------------------------------------------

INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Take indices on the CPU for a tensor of the device."""
NUMBERS = INDEXING | {"where", "masked_fill", "masked_fill_", "fill_"}
"""Take a number in a CPU tensor without dimensions, as pointwise operators do."""
WAITS = "_local_scalar_dense nonzero masked_select _unique2 unique_dim repeat_interleave equal bincount".split()
"""Operators for which the host waits until the device has come so far."""
UNREPEATABLE = "put_ histc median nll_loss2d_forward".split()
"""Operators that CUDA refuses where all must be deterministic, beside cumulative sums of numbers that are not whole."""
waits: Counter[str] = Counter()
"""How often it waited, by operator, and `copies` from the device."""


class _Kind:
    """What the schema of an operator says."""

    def __init__(self, op: Any) -> None:
        made = [x.alias_info for x in op._schema.returns]
        self.looks = op._opname == "set_" or any(x is not None and not x.is_write for x in made)
        """Nothing is read or written: what it gives shows the same memory."""
        self.writes, self.tensors = op._schema.is_mutable, [str(x.type) == "Tensor" for x in op._schema.arguments]
        self.takes_generator = any(x.name == "generator" for x in op._schema.arguments)
        self.draws = torch.Tag.nondeterministic_seeded in op.tags and not self.takes_generator
        self.indexes = op._opname in INDEXING
        self.takes_numbers = op._opname in NUMBERS or torch.Tag.pointwise in op.tags


_kind = functools.cache(_Kind)


def _operator(op: Any, *args: Any, **kwargs: Any) -> Any:
    """Any operator that is given a tensor of the device, or asked for one."""
    kind = _kind(op)
    if kind.looks:
        return op.redispatch(CPU, *args, **kwargs)
    _check(op, kind, args, [*_flat(args), *_flat(kwargs.values())])
    known: dict[int, tuple[Tensor, Tensor]] = {}

    def here(x: Any) -> Any:
        if isinstance(x, Tensor) and x.device.type == NAME:
            host = _host(x)
            known[id(host)] = (x, host)
            return host
        if isinstance(x, list | tuple):
            return [here(y) for y in x]
        return torch.device("cpu") if isinstance(x, torch.device) else x

    def there(x: Any) -> Any:
        if isinstance(x, list | tuple):
            return type(x)(map(there, x))
        return x if not isinstance(x, Tensor) else known[id(x)][0] if id(x) in known else _new(x)

    if kind.takes_generator and kwargs.get("generator") is None:
        kwargs["generator"] = second.generator
    # PyTorch shows a number as itself where a tensor is meant, and does not take it back
    given = [torch.tensor(x) if isinstance(x, int | float) and kind.tensors[i] else here(x) for i, x in enumerate(args)]
    with _drawing() if kind.draws else contextlib.nullcontext():
        found = op(*given, **{name: here(x) for name, x in kwargs.items()})
    for tensor, host in known.values() if kind.writes else ():
        if tensor.shape != host.shape or tensor.data_ptr() != host.data_ptr():  # the operator has resized it
            _bound(tensor, host)
    return there(found)


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    """What is drawn from the CPU's own generator comes from the device's: dropout takes no other."""
    before = torch.get_rng_state()
    torch.set_rng_state(second.generator.get_state())
    yield
    second.generator.set_state(torch.get_rng_state())
    torch.set_rng_state(before)


def _flat(given: Any) -> Iterator[Any]:
    for x in given:
        if isinstance(x, list | tuple):
            yield from x
        else:
            yield x


def _new(host: Tensor) -> Tensor:
    return _bound(torch._C._acc.create_empty_tensor([0], host.dtype), host)


def _check(op: Any, kind: _Kind, args: Any, given: list[Any]) -> None:
    """Raise what CUDA raises where both devices meet, or where nothing may depend on chance; count what it would wait for."""
    tensors = [x for x in given if isinstance(x, Tensor)]
    strangers = [x for x in tensors if x.device.type == "cpu"]
    if len(strangers) < len(tensors):
        if kind.indexes:
            strangers = [x for x in strangers if not any(x is y for y in args[1])]
        if kind.takes_numbers:
            strangers = [x for x in strangers if x.dim() or (kind.writes and x is args[0])]
        if strangers:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but found at least two devices, {NAME}:0 and cpu! ({op} was "
                f"given tensors of the CPU of shapes {[tuple(x.shape) for x in strangers]})"
            )
        if op._opname in UNREPEATABLE or (op._opname.startswith("cumsum") and tensors[0].is_floating_point()):
            raise RuntimeError(f"{op} does not have a deterministic implementation, but you set trainer.deterministic")
        masks = op._opname == "_index_put_impl_" and any(x is not None and x.dtype == torch.bool for x in args[1])
        if masks or op._opname in WAITS:
            waits[op._opname] += 1
    for x in given:
        if isinstance(x, torch.Generator) and x.device.type != NAME:
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{x.device.type}'")


def _copy(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """From device to device, or from and to the CPU."""
    if _there(source) and not _there(target):
        waits["copies"] += 1
    (_host(target) if _there(target) else target).copy_(_host(source) if _there(source) else source)
    return target


# -- the device --------------------------------------------------------------------------------------------------------


class Generator(torch.Generator):
    """Of the CPU, but it says of which device it was asked to be."""

    def __new__(cls, device: Any = "cpu") -> Any:
        self = super().__new__(cls)
        self.asked = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.asked


class _Generators(TorchFunctionMode):
    """Refuses a generator of the device for tensors of the CPU."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        generator = (kwargs or {}).get("generator")
        if generator is not None and isinstance(found, Tensor) and found.device.type != generator.device.type:
            asked, given = found.device.type, generator.device.type
            raise RuntimeError(f"Expected a '{asked}' device type for generator but found '{given}'")
        return found


class Second:
    """What `torch.second` can be asked, as `torch.cuda`."""

    generator: Generator

    is_available = is_initialized = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    device_count = staticmethod(lambda: 1)
    current_device = max_memory_allocated = staticmethod(lambda: 0)
    mem_get_info = staticmethod(lambda device=None: (2**30, 2**31))
    synchronize = staticmethod(lambda device=None: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])

    def manual_seed_all(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    manual_seed = manual_seed_all

    def get_rng_state(self, device: Any = None) -> Tensor:
        return self.generator.get_state()

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        self.generator.set_state(state)

    def get_rng_state_all(self) -> list[Tensor]:
        return [self.generator.get_state()]

    def set_rng_state_all(self, states: list[Tensor]) -> None:
        self.generator.set_state(states[0])

    class device:
        def __init__(self, index: Any) -> None: ...
        def __enter__(self) -> None: ...
        def __exit__(self, *_: Any) -> None: ...


class SecondAccelerator(Accelerator):
    """Lightning's view of it."""

    setup_device = teardown = lambda self, *_: None
    parse_devices = staticmethod(lambda devices: [0])
    get_parallel_devices = staticmethod(lambda devices: [torch.device(NAME, 0)])
    auto_device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    name = staticmethod(lambda: NAME)

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


second: Any = None


def register() -> None:
    """Take the place; once in a process, before anything is differentiated in it."""
    global second
    second = Second()
    backend_registration._setup_privateuseone_for_python_backend(NAME, second)
    second.generator = Generator(torch.device(NAME, 0))
    library = torch.library.Library("_", "IMPL", "PrivateUse1")
    library.fallback(_operator)
    own = torch.library.Library("aten", "IMPL", "PrivateUse1")
    own.impl("_copy_from", _copy)
    own.impl("_fused_sdp_choice", lambda *_, **__: 0)  # the plain one
    KEPT.extend([library, own])
    AcceleratorRegistry.register(NAME, SecondAccelerator)
    StrategyRegistry.register(NAME, SingleDeviceStrategy, device=f"{NAME}:0")
    os.environ["RLHF_LIGHTNING_DEBUG"] = "1"  # a run that fails says where
    torch.set_num_threads(1)
    torch.Generator = Generator
    _Generators().__enter__()
    for module in (memory, out_of_memory, retry_and_timeout, random_states):
        module.torch = _AsCuda()
    for module in (resume, validation, checkpoints, rollout_loader, reference_cache, reward):
        module.all_gather = _all_gather


KEPT: list[Any] = []


class _AsCuda:
    """torch for those modules of the package that ask CUDA by its name."""

    def __getattr__(self, name: str) -> Any:
        return second if name == "cuda" else getattr(torch, name)


def _all_gather(value: Any) -> list[Any]:
    """`ranks.all_gather` pickles what it sends: tensors of the device would arrive on that of another rank."""
    if any(map(_there, pytree.tree_leaves(value))):
        raise RuntimeError(f"tensors of {NAME} would be pickled")
    return [value]


def fit(folder: Path, *words: str, there: bool = True) -> Counter[str]:
    """Run `fit` with these words on the device, or on the CPU of this process; how often the host waited."""
    waits.clear()
    print_first_time.cache_clear()
    where = ["--trainer.accelerator", NAME, "--trainer.strategy", NAME] if there else []
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(said):
        if main(["fit", *words, *where, *quiet]) != 0:
            raise AssertionError(said.getvalue())
    assert "rows are padded" not in said.getvalue(), "whether rows may share lines was not found out"
    return +waits


def waits_of_writing(folder: str, tokens: int) -> int:
    """How often the host waits while two rows of so many tokens are written."""
    model = load_causal_lm(ModelConfig(folder)).to(NAME)
    supports_packing(backbone_of(model))
    prompts, randomness = torch.full((2, 3), 7, device=NAME), Randomness(0, 0, (0, 1))
    waits.clear()
    sampler = Sampler(tokens)
    generated = sampler.generate(
        GenerationRequest(prompts, prompts > 0, sampler.sampling_params([], 0), randomness, model)
    )
    found = sum(waits.values())
    assert generated.mask.all()
    return found
