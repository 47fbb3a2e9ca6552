"""Compile every kernel to machine code for a GPU that need not be there.

`python triton_compile.py 90 float32 float64` compiles for capability 9.0, in both precisions.
"""

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from iwbounds.kernels import triton_bound, triton_densities, triton_leave_one_out, triton_tiles

compiled = set()


def kind(value):
    """Triton's name for the type of an argument as it is passed at run time."""
    if isinstance(value, torch.Tensor):
        return "*i64" if value.dtype == torch.int64 else {4: "*fp32", 8: "*fp64"}[value.element_size()]
    return "i32" if isinstance(value, int) else "fp64"


def compile_instead(kernel, tiles, *arguments, **constants):
    """Stands in for a launch: the same arguments decide the signature."""
    constants |= {"block_k": tiles.block_k, "block_b": tiles.block_b}
    names = [name for name in kernel.arg_names if name not in constants]
    given = dict(zip(names, arguments, strict=True))
    constants |= {name: None for name, value in given.items() if value is None}
    floats = {p.name: p.annotation_type for p in kernel.params if isinstance(given.get(p.name), float)}
    assert set(floats.values()) <= {"fp64"}, f"{floats} of {kernel.fn.__name__} would be rounded to float32"
    signature = {n: "constexpr" if n in constants else kind(given[n]) for n in kernel.arg_names}
    key = (kernel.fn.__module__, kernel.fn.__name__, str(sorted((k, str(v)) for k, v in constants.items())))
    if key in compiled:
        return
    compiled.add(key)
    source = ASTSource(
        fn=kernel, signature=signature, constexprs={(kernel.arg_names.index(n),): v for n, v in constants.items()}
    )
    code = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"enable_fp_fusion": True})
    assert len(code.asm["cubin"]) > 0
    print(kernel.fn.__module__.rsplit(".", 1)[-1] + kernel.fn.__name__, flush=True)


def every_kernel(dtype):
    x, row = torch.zeros(8, 4, dtype=dtype), torch.zeros(4, dtype=dtype)
    triton_bound.launch_bound(x, row, x, x, 0.5, 0.3)
    triton_bound.launch_mean(x, row, row, row)
    triton_bound.launch_mean_backward(row, x, row, row, x)
    triton_leave_one_out.launch_leave_one_out(x, x)
    triton_leave_one_out.launch_leave_one_out_backward(x, x, x)
    triton_leave_one_out.launch_vimco(x, row, x, x, True)
    event, each = torch.zeros(2, 3, 8, dtype=dtype), torch.zeros(2, 3, dtype=dtype)
    triton_densities.launch_bernoulli(event, event, each)
    triton_densities.launch_bernoulli_backward(each, event, event, event)
    triton_densities.launch_gaussian((event, event, event), each)
    triton_densities.launch_gaussian_backward(each, (event, event, event), (event, event[0], event[0]))


def main():
    for module in (triton_bound, triton_leave_one_out, triton_densities):
        module.launch = compile_instead
    triton_tiles.USUAL = 16
    for dtype in sys.argv[2:]:
        for triton_tiles.LARGEST in (1 << 14, 4):
            every_kernel(getattr(torch, dtype))


if __name__ == "__main__":
    main()
