"""The planner: pure arithmetic from what models need and devices have to where each layer goes.

Small models run most often, so they go to the GPUs first, whole if they fit; then as many layers of the larger ones as
fit. A number in a recipe's `offload` is obeyed before anything else is placed. Nothing is planned beyond what is free;
what is kept back is for what no plan can know: a driver's own buffers, threads' stacks, the program around it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal

from eft_local.backends.llamacpp.estimate import Estimate, Figures, at
from eft_local.gguf.weights import Weights
from eft_local.machine.memory import ADDRESS_SPACE, Device

_MIB = 1 << 20
_KEPT_GPU = 512 * _MIB  # a driver's and its libraries' buffers
_KEPT_RAM = 256 * _MIB  # the program around the models, and others that grow
_KEPT_ADDRESSES = 512 * _MIB  # stacks and arenas of threads: reserved, hardly used
_MOST_KEPT = 0.25  # of what is free
_PER_MODEL = 32 * _MIB  # its vocabulary, its graph


@dataclass(frozen=True, slots=True)
class ContextEstimate:
    """A context that roles share, sequences side by side.

    sequences: of the recipe's `context` tokens each.  estimate: for a context of as many sequences and outputs.
    """

    roles: tuple[str, ...]
    sequences: int
    estimate: Estimate

    def figures(self, tokens: int, layers: int) -> Figures:
        """Return what the context takes if a sequence has so many tokens and so many layers are on GPUs."""
        estimate = self.estimate
        whole = layers > len(estimate.weights.layers)
        curve = estimate.on_gpu if whole else estimate.on_both if layers else estimate.on_cpu
        return at(curve, tokens)


@dataclass(frozen=True, slots=True)
class Load:
    """Weights that are loaded once, and the contexts on them.

    adapters: bytes of LoRA adapters.  offload: layers on GPUs, the output counted as one; -1 all, "auto" what fits.
    mmap: "auto" maps a file where its weights are used as they lie in it.
    """

    contexts: tuple[ContextEstimate, ...]
    offload: int | Literal["auto"] = "auto"
    mmap: bool | Literal["auto"] = "auto"
    adapters: int = 0

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(role for context in self.contexts for role in context.roles)

    @property
    def estimate(self) -> Estimate:
        """What concerns the weights is the same in all contexts."""
        return self.contexts[0].estimate

    @property
    def units(self) -> int:
        """Layers that can be on a GPU, with the output as the last one."""
        return len(self.estimate.weights.layers) + 1


@dataclass(frozen=True, slots=True)
class Use:
    """Bytes on one device.

    cache: of keys and values, and recurrent states.  compute: llama.cpp's compute buffers.
    other: rows of logits, the vocabulary.  mapped: those of the weights that are pages of a file: the system can take
    them away and read them again.
    """

    weights: int = 0
    cache: int = 0
    compute: int = 0
    other: int = 0
    mapped: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.compute + self.other

    def __add__(self, other: Use) -> Use:
        return Use(
            self.weights + other.weights,
            self.cache + other.cache,
            self.compute + other.compute,
            self.other + other.other,
            self.mapped + other.mapped,
        )


@dataclass(frozen=True, slots=True)
class Placed:
    """A load in its place.

    layers: on each GPU, in the order of the plan's GPUs; none if no GPU is used.  mmap: whether the file is mapped.
    uses: by device's name; what is not on a GPU is in RAM.
    """

    load: Load
    layers: tuple[int, ...]
    mmap: bool
    uses: Mapping[str, Use]

    @property
    def on_gpu(self) -> int:
        """Layers on GPUs, as llama.cpp counts them."""
        return sum(self.layers)

    @property
    def total(self) -> Use:
        return sum(self.uses.values(), Use())


@dataclass(frozen=True, slots=True)
class Shortage:
    """A device that cannot hold what was planned for it. Bytes; `kept` of the free ones are not planned with."""

    device: Device
    needed: int
    kept: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Where everything goes, with a context of so many tokens for each role."""

    context: int
    placed: tuple[Placed, ...]
    devices: tuple[Device, ...]
    shortages: tuple[Shortage, ...]

    @property
    def fits(self) -> bool:
        return not self.shortages

    def used(self, device: Device) -> Use:
        """Return what all models take of a device."""
        return sum((placed.uses.get(device.name, Use()) for placed in self.placed), Use())

    def of(self, role: str) -> Placed:
        """Return where a role's weights are."""
        return next(placed for placed in self.placed if role in placed.load.roles)


def plan(loads: Sequence[Load], devices: Sequence[Device], context: int) -> Plan:
    """Return where each load goes. devices: the first that is a CPU has the RAM; GPUs in llama.cpp's order."""
    machine = _Machine(devices, context)
    order = sorted(range(len(loads)), key=lambda i: (loads[i].offload == "auto", loads[i].estimate.weights.total, i))
    placed: dict[int, Placed] = {}
    for index in order:
        placed[index] = machine.place(loads[index])
    in_order = tuple(placed[index] for index in range(len(loads)))
    return Plan(context, in_order, tuple(devices), tuple(machine.shortages()))


def longest_context(loads: Sequence[Load], devices: Sequence[Device], most: int | None = None) -> int:
    """Return the longest context, of whole multiples of 256 tokens, that a plan fits with; 0 if there is none.

    most: where to stop; None is what the model with the shortest context was trained with.
    """
    trained = [load.estimate.weights.trained for load in loads if load.estimate.weights.trained]
    low, high = 0, max(1, (most or min(trained, default=4096)) // 256)
    while low < high:
        middle = (low + high + 1) // 2
        if plan(loads, devices, 256 * middle).fits:
            low = middle
        else:
            high = middle - 1
    return 256 * low


class _Machine:
    """Devices, and what is left of each as loads are placed."""

    def __init__(self, devices: Sequence[Device], context: int) -> None:
        self._ram = next(device for device in devices if device.kind == "cpu")
        self._gpus = gpus(devices)
        self._context = context
        self._left = {device.name: device.free - kept(device) for device in (self._ram, *self._gpus)}
        self._planned = dict.fromkeys(self._left, 0)

    def place(self, load: Load) -> Placed:
        """Place a load and take what it uses."""
        placed = self._chosen(load) if load.offload == "auto" else self._obeyed(load, load.offload)
        for name, size in self._demand(placed).items():
            self._left[name] -= size
            self._planned[name] += size
        return placed

    def shortages(self) -> Iterator[Shortage]:
        for device in (self._ram, *self._gpus):
            reports = device.total > 0 or device is self._ram  # a GPU that does not is left to a recipe's number
            if reports and self._left[device.name] < 0:
                yield Shortage(device, self._planned[device.name], kept(device))

    def _obeyed(self, load: Load, offload: int) -> Placed:
        """Place as many layers on GPUs as the recipe says: on one if it holds them, or spread over all."""
        count = load.units if offload == -1 else min(offload, load.units)
        if not count or not self._gpus:
            return self._placed(load, ())
        for option in self._alone(load, count):
            if self._fits_gpus(option):
                return option
        return self._placed(load, self._spread(load, count))

    def _chosen(self, load: Load) -> Placed:
        """Place all layers on one GPU, or as many as fit spread over all of them, or none."""
        for option in self._alone(load, load.units):
            if self._fits_gpus(option):
                return option
        for count in range(load.units, 0, -1) if self._gpus else ():
            option = self._placed(load, self._spread(load, count))
            if self._fits_gpus(option):
                return option
        return self._placed(load, ())

    def _alone(self, load: Load, count: int) -> Iterator[Placed]:
        """Yield so many layers on one GPU, on the one with most room first."""
        for gpu in sorted(self._gpus, key=lambda each: -self._left[each.name]):
            yield self._placed(load, tuple(count * (each is gpu) for each in self._gpus))

    def _spread(self, load: Load, count: int) -> tuple[int, ...]:
        """Fill one GPU after the other with the last `count` layers; the last one gets all that is left over."""
        layers = []
        first = load.units - count
        for gpu in self._gpus[:-1]:
            end = first
            while end < load.units and self._on_gpu(load, range(first, end + 1), count).total <= self._left[gpu.name]:
                end += 1
            layers.append(end - first)
            first = end
        return (*layers, load.units - first)

    def _fits_gpus(self, placed: Placed) -> bool:
        demand = self._demand(placed)
        return all(demand.get(gpu.name, 0) <= self._left[gpu.name] for gpu in self._gpus)

    def _demand(self, placed: Placed) -> dict[str, int]:
        """Return the bytes that must be free on each device."""
        demand = {name: use.total for name, use in placed.uses.items()}
        # A file that the user wants mapped need not fit: what the system takes away is read again.
        if placed.load.mmap is True and self._ram.limit != ADDRESS_SPACE:
            demand[self._ram.name] -= placed.uses[self._ram.name].mapped
        demand[self._ram.name] += sum(demand.get(gpu.name, 0) for gpu in self._gpus if gpu.shares_ram)
        return demand

    def _placed(self, load: Load, layers: tuple[int, ...]) -> Placed:
        """Return what a load takes of each device with so many of its last layers on each GPU."""
        count = sum(layers)
        first = load.units - count
        estimate = load.estimate
        mmap = not (estimate.repacks and first) if load.mmap == "auto" else load.mmap
        uses = {self._ram.name: self._in_ram(load, count, mmap)}
        for gpu, each in zip(self._gpus, layers, strict=False):
            if each:
                uses[gpu.name] = self._on_gpu(load, range(first, first + each), count)
            first += each
        return Placed(load, layers if count else (), mmap, uses)

    def _in_ram(self, load: Load, count: int, mmap: bool) -> Use:
        """Return what is in RAM if `count` layers are not."""
        estimate, weights = load.estimate, load.estimate.weights
        first = load.units - count
        ordered = sum(weights.layers[:first]) + (0 if count else weights.output)  # what a CPU may want in another order
        as_in_file = weights.input + ordered
        copies = 0
        if estimate.repacks and first:  # embeddings that serve as output matrix too are kept in both orders
            copies = (ordered if mmap else 0) + (0 if count else estimate.copied)
        all_figures = [context.figures(self._context, count) for context in load.contexts]
        layers = min(first, len(weights.layers))
        return Use(
            weights=as_in_file + copies + load.adapters,
            cache=sum(_share(each.cache + each.state, layers, weights) for each in all_figures),
            compute=sum(each.host for each in all_figures),
            other=_PER_MODEL + sum(each.outputs for each in all_figures),
            mapped=as_in_file if mmap else 0,
        )

    def _on_gpu(self, load: Load, units: range, count: int) -> Use:
        """Return what a GPU with these layers holds, where `count` are on GPUs in all."""
        weights = load.estimate.weights
        layers = weights.layers[units.start : units.stop]
        output = weights.output + weights.tied if load.units - 1 in units else 0
        all_figures = [context.figures(self._context, count) for context in load.contexts]
        return Use(
            weights=sum(layers) + output,
            cache=sum(_share(each.cache + each.state, len(layers), weights) for each in all_figures),
            compute=sum(each.gpu for each in all_figures),
        )


def _share(size: int, layers: int, weights: Weights) -> int:
    """Return the part of a cache that so many layers have; nothing says which layers have none."""
    return ceil(size * layers / max(1, len(weights.layers)))


def gpus(devices: Sequence[Device]) -> tuple[Device, ...]:
    """Return the GPUs as llama.cpp uses them: integrated ones only where there are no others."""
    own = tuple(device for device in devices if device.kind == "gpu")
    return own or tuple(device for device in devices if device.kind == "integrated gpu")


def kept(device: Device) -> int:
    """Return the bytes of a device that are not planned with."""
    most = _KEPT_ADDRESSES if device.limit == ADDRESS_SPACE else _KEPT_RAM if device.kind == "cpu" else _KEPT_GPU
    return min(most, ceil(_MOST_KEPT * device.free))
