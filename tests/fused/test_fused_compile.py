"""The kernels compiled for devices that need not be there: what the interpreter cannot show.

The interpreter knows no layouts, no alignment and no registers. Here the code is looked at that NVIDIA's and AMD's
devices would run, in a process of its own, where Triton has not been told to interpret.
"""

import json
import os
import subprocess
import sys

import pytest

COMPILE = r"""
import json, re, sys
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gradient_lars.torch import _fused_bucket, _fused_tables, _triton, _triton_hook

TYPES = {"fp32": tl.float32, "fp16": tl.float16, "bf16": tl.bfloat16, "fp64": tl.float64, None: None}
options = _fused_bucket.LAUNCH


def compiled(kernel, target, types, carry, extras):
    weights, grad, momentum, low = types
    wide = "fp64" if "fp64" in types else "fp32"
    constants = {"W": weights, "G": grad, "M": momentum, "LOW": low, "WIDE": wide}
    constants = {name: TYPES[value] for name, value in constants.items()}
    constants |= {"CARRY": carry, "DECAY": carry, "CHUNK": _fused_tables.CHUNK, "BLOCK": _fused_bucket.BLOCK}
    constants |= {"REDUCE": _fused_bucket.REDUCE, "LAYOUT": _triton.LAYOUT}
    if not extras:
        constants |= dict.fromkeys(("scale_ptr", "found_inf_ptr", "bad_ptr", "skipped_ptr"))
    pointers = {"table_ptr": "*i64", "items_ptr": "*i32", "marks_ptr": "*i32", "counts_ptr": "*i32"}
    pointers |= {"scale_ptr": "*fp32", "found_inf_ptr": "*fp32", "bad_ptr": "*i32", "skipped_ptr": "*i64"}
    pointers |= dict.fromkeys(("p_sums_ptr", "g_sums_ptr", "new_sums_ptr", "figures_ptr"), "*" + wide)
    signature, values = {}, {}
    for i, name in enumerate(kernel.arg_names):
        signature[name] = "constexpr" if name in constants else pointers.get(name, "i32")
        if name in constants:
            values[(i,)] = constants[name]
    divisible = {(i,): [["tt.divisibility", 16]] for i, (_, t) in enumerate(signature.items()) if t.startswith("*")}
    return triton.compile(ASTSource(kernel, signature, values, divisible), target=target, options=options).asm


def reductions(asm):
    layouts = dict(re.findall(r"(#\w+) = (#ttg\..*)", asm["ttgir"]))
    found = re.findall(r'"tt\.reduce".*?\}\) : \(tensor<(\w+), (#\w+)>', asm["ttgir"], re.S)
    return sorted({(shape, layouts[name]) for shape, name in found if shape.startswith("1024x")})


def facts(asm):
    code = asm.get("ptx") or asm["amdgcn"]
    wide = re.findall(r"(?:ld|st)\.global\S*\.v[24]\S*|(?:global|flat|buffer)_(?:load|store)_dwordx4", code)
    spilled = re.findall(r"\.local |\.private_segment_fixed_size: [1-9]", code)
    fused = re.findall(r"\bfma\.rn\.f32|v_fma(?:c|mac)?_f32|v_pk_fma_f32", code)
    return {"wide": len(wide), "spilled": len(spilled), "fused": len(fused), "reductions": reductions(asm),
            "rounds": "cvt.rn.bf16" in code, "atomics": len(re.findall(r"\batom\.|global_atomic", code)),
            "orders": sorted(set(re.findall(r"(?:atom|red|ld)\.global\.gpu\.(\w+)", code))),
            "amd": sorted(set(re.findall(r"buffer_(?:wbl2|inv) sc1", code)))}


backend, arch, *types = json.loads(sys.argv[1])
target = GPUTarget(backend, arch, 64 if backend == "hip" else 32)
found = {}
for carry in (True, False):
    norms = compiled(_triton.norms, target, types, carry, extras=carry)
    update = compiled(_triton.update, target, types, carry, extras=carry)
    rescale = compiled(_triton_hook.rescale, target, types, carry, extras=carry)
    found[str(carry)] = [facts(norms), facts(update), facts(rescale)]
kernels = _triton.norms, _triton.update, _triton_hook.rescale
compared = [name for kernel in kernels for name, _ in kernel.used_global_vals]
print(json.dumps([found, compared]))
"""

TARGETS = [("cuda", 90), ("cuda", 75), ("hip", "gfx942")]
TYPES = [("fp32", "fp32", "fp32", None), ("fp32", "bf16", "fp32", "bf16"), ("fp16", "fp16", None, None)]
MIXES = [(*TARGETS[0], *types) for types in (*TYPES, ("fp64", "fp64", "fp64", None))]
MIXES += [(*target, *TYPES[0]) for target in TARGETS[1:]]


@pytest.mark.parametrize("mix", [MIXES[0], *(pytest.param(mix, marks=pytest.mark.slow) for mix in MIXES[1:])], ids=str)
def test_compiles_to_wide_loads_without_spilling(mix, tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    env |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    # As a file: Triton reads the source of what it compiles.
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    command = [sys.executable, str(script), json.dumps(mix)]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found, compared = json.loads(result.stdout)
    # Global names are compared at every launch.
    assert compared == []
    for norms, update, rescale in found.values():
        for facts in (norms, update):
            assert facts["spilled"] == 0
            assert facts["atomics"] == 0
            # Carried sums and those computed anew are the same bits only if each product is rounded.
            if mix[0] == "cuda" and mix[2] != "fp64":
                assert facts["fused"] == 0 or facts is update
        # Each of the threads takes its part of 8192 entries in pieces of 16 bytes, at least once per tensor and loop.
        assert norms["wide"] >= 8
        assert update["wide"] >= 8 * (4 if mix[4] else 3)
        sums = [found for found in update["reductions"] if found in norms["reductions"]]
        assert update["reductions"] == sums
        assert rescale["spilled"] == 0
        assert rescale["wide"] >= 8 * 3
        # What the waiting rests upon: sums are stored before they are counted, and read after the count.
        if mix[0] == "cuda":
            assert rescale["orders"] == ["acq_rel", "acquire", "release"]
            assert rescale["fused"] == 0 or mix[2] == "fp64"
        else:
            assert rescale["amd"] == ["buffer_inv sc1", "buffer_wbl2 sc1"]
        if mix[5] == "bf16":
            assert update["rounds"]
