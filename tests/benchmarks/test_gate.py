"""The gate counts what it says it counts, and each fault of compiled code is found."""

import pytest

from benchmarks.gpu import gate
from mikernels.triton_impl.configs import Config

ASSEMBLY = """
.L_x_0:
        /*0010*/                   IGMMA.64x128x32.S8.S8 R24, gdesc[UR32], R24, gsb0 ;
        /*0020*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0021*/               @P1 BRA `(.L_x_2) ;
        /*0022*/                   FMUL R3, R3, R4 ;
        /*0023*/                   FMUL R4, R3, R4 ;
        /*0024*/                   FMUL R5, R3, R4 ;
.L_x_2:
        /*0030*/              @!P0 BRA `(.L_x_0) ;
        /*0040*/                   MUFU.LG2 R1, R2 ;
        /*0050*/                   FMUL R1, R1, R2 ;
        /*0060*/                   EXIT ;
.L_x_1:
        /*0070*/                   BRA `(.L_x_1);
"""

AMD = """
.LBB0_1:
        v_mfma_i32_32x32x16_i8 a[0:15], v[0:1], v[2:3], a[0:15] // comment
        s_cbranch_scc0 .LBB0_1
        v_log_f32_e32 v1, v1
        s_endpgm
"""

LOOP = """
    %a:5 = scf.for %i = %c0 to %n step %c64 iter_args(%x = %y) -> (f32) : i32 {
      %p = ttng.warp_group_dot_wait %d {pendings = 1 : i32} : tensor<128x128xf32>
      %q = scf.if %r -> (tensor<128x128xf32>) {
        %s = ttng.warp_group_dot_wait %p {pendings = 0 : i32} : tensor<128x128xf32>
      } else {
        scf.yield %x : f32
      } loc(#loc1)
    } loc(#loc2)
    %t = ttng.warp_group_dot_wait %a {pendings = 0 : i32} : tensor<128x128xf32>
"""

CASE = gate.Case("grid_kernel", "sm_90", "fp16", Config(128, 256, 128, 8, 3), 16)
GOOD = {
    "spills": 0,
    "shared_bytes": 147480,
    "logarithms": 128,
    "matrix_instructions": {"HGMMA": 4},
    "asynchronous_loads": 6,
    "programs_per_multiprocessor": 1,
    "draining_waits_in_loop": 0,
    "instructions_per_round": 20,
    "instructions_in_branch": 10,
    "instructions_after_loop": 1100,
}


def test_instructions_are_counted_within_and_after_the_loop_of_the_product():
    assert gate.instructions_after_product(ASSEMBLY) == gate.After(per_round=3, in_branch=3, after_loop=3)
    assert gate.instructions_after_product(AMD) == gate.After(per_round=1, in_branch=0, after_loop=2)


def test_waits_for_every_product_are_those_in_each_round_of_the_loop():
    assert gate.draining_waits(LOOP) == 0
    assert gate.draining_waits(LOOP.replace("pendings = 1", "pendings = 0")) == 1


def test_share_of_what_follows_a_product():
    """1110 instructions of 8 warps on 4 schedulers; 128 x 256 x 4096 products at 2048 a cycle."""
    assert gate.share_after_product(GOOD, CASE) == pytest.approx(2220 / 65536)


def test_logarithms_take_eight_cycles_of_their_unit():
    found = GOOD | {"instructions_after_loop": 900}
    assert gate.share_after_product(found, CASE) == pytest.approx(128 * 8 * 2 / 65536)


def test_a_loop_that_waits_for_every_product_pays_for_each_round():
    assert gate.cycles_after_product(GOOD, CASE, 1, rounds=64) == 1110 * 2
    found = GOOD | {"draining_waits_in_loop": 1}
    assert gate.cycles_after_product(found, CASE, 1, rounds=64) == (1110 + 64 * 20) * 2


def test_kde_pays_once_for_each_sample():
    """12 samples of 1024 before a logarithm."""
    config = Config(128, 128, 128, 8, 4)
    share = gate.share_after_product(GOOD, gate.Case("kde_kernel", "sm_90", "fp16", config))
    assert share == pytest.approx((1100 + 12 * 10) * 2 / (128 * 128 * 12 * 1024 / 2048))


def test_good_code_has_no_faults():
    assert gate.faults(GOOD, CASE) == []


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"spills": 3}, "3 spills"),
        ({"logarithms": 0}, "logarithms are a software routine"),
        ({"matrix_instructions": {"HMMA": 4}}, "no HGMMA"),
        ({"asynchronous_loads": 0}, "no asynchronous loads"),
        ({"draining_waits_in_loop": 1}, "the loop waits for every product"),
        ({"instructions_after_loop": 3300}, "10% of the product's cycles follow it"),
        ({"programs_per_multiprocessor": 0}, "fewer than 1 programs on a multiprocessor"),
        ({"shared_bytes": 240_000}, "more than 232448 bytes of shared memory"),
    ],
)
def test_each_fault_is_found(change, fault):
    assert gate.faults(GOOD | change, CASE) == [fault]


def test_a_remark_of_the_compiler_is_a_fault():
    said = "remark: Forcing a different order [0, 1] on SMEM than the register order"
    assert gate.faults(GOOD, CASE, said) == ["the compiler says 'Forcing a different order'"]
