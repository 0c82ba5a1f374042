"""A device that is not the CPU, without one: tensors that say they are on `meta`, and are computed on the CPU.

As on CUDA, an operation that mixes tensors of the two devices is refused, unless the one on the CPU is a single number or an index."""
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device('meta')
aten = torch.ops.aten
COPIES = aten.copy_.default, aten._to_copy.default
INDEXING = aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default


class Far(torch.Tensor):
    "A tensor of the CPU that says it is elsewhere"
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        far = torch.Tensor._make_wrapper_subclass(cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=DEVICE)
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return call(func, args, kwargs or {})


def near(t): return t.near if isinstance(t, Far) else t


def call(func, args, kwargs):
    tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    far = [t for t in tensors if isinstance(t, Far)]
    left = [tuple(t.shape) for t in tensors if not isinstance(t, Far) and t.ndim]
    if far and left and not (func in COPIES or func in INDEXING and isinstance(args[0], Far)):
        raise RuntimeError(f'{func} of tensors on two devices: those of shapes {left} are on the CPU')
    device = kwargs.get('device')
    stays = torch.device(device) == DEVICE if device is not None else isinstance(args[0], Far) if func is aten.copy_.default else bool(far)
    if device is not None: kwargs = kwargs | {'device': 'cpu'}
    with _disable_current_modes(): out = func(*tree_map(near, args), **tree_map(near, kwargs))
    known = {id(t.near): t for t in far} # what an operation in place gives back
    away = lambda t: known[id(t)] if id(t) in known else Far(t)
    return tree_map(lambda t: away(t) if stays and isinstance(t, torch.Tensor) else t, out)


class Elsewhere(TorchDispatchMode):
    "Inside the `with` block, what is made on `meta` or brought there is `Far`"
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return call(func, args, kwargs or {})
