import pytest

from pyvllama.conversion.policy import MMPROJ_TYPES, TEXT_TYPES, Layer, Role, file_type, fit_type, matrix_type
from pyvllama.errors import ConfigError

Q4_K_M = TEXT_TYPES["q4_k_m"]


def more_bits(n_layers, **layer):
    kinds = [matrix_type(Q4_K_M, Role.ATTN_V, Layer(i, n_layers, **layer), 4096) for i in range(n_layers)]
    return [i for i, kind in enumerate(kinds) if kind == "q6_K"]


def test_layers_with_more_bits():
    assert more_bits(32) == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert more_bits(8) == [0, 3, 6, 7]
    assert more_bits(5) == [2, 4]
    assert more_bits(1) == [0]


def test_70b_gives_attn_v_five_bits_elsewhere():
    kinds = {matrix_type(Q4_K_M, Role.ATTN_V, Layer(i, 80, is_70b=True), 8192) for i in range(80)}
    assert kinds == {"q5_K", "q6_K"}
    assert matrix_type(Q4_K_M, Role.FFN_DOWN, Layer(11, 80, is_70b=True), 8192) == "q4_K"


@pytest.mark.parametrize(
    ("role", "n_per_row", "expected"),
    [
        (Role.TOKEN_EMBD, 4096, "q4_K"),
        (Role.TOKEN_EMBD, 96, "q5_0"),
        (Role.TOKEN_EMBD, 80, "f16"),
        (Role.OUTPUT, 4096, "q6_K"),
        (Role.OUTPUT, 96, "q8_0"),
        (Role.OUTPUT, 80, "f16"),
        (Role.FFN_DOWN, 96, "q8_0"),  # layer 0 of 1 has more bits
        (Role.ATTN_Q, 256, "q4_K"),
    ],
)
def test_q4_k_m(role, n_per_row, expected):
    assert matrix_type(Q4_K_M, role, Layer(), n_per_row) == expected


@pytest.mark.parametrize("name", ["f32", "f16", "bf16", "q8_0"])
def test_uniform_types(name):
    assert {matrix_type(TEXT_TYPES[name], role, Layer(), 4096) for role in Role} == {name}


def test_rows_that_do_not_fit():
    assert fit_type("q8_0", 80) == "f16"
    assert fit_type("q4_K", 160) == "q5_0"
    assert fit_type("bf16", 81) == "bf16"


def test_tower_in_q4_k():
    assert matrix_type(MMPROJ_TYPES["q4_k"], Role.TOWER, Layer(3, 32), 1280) == "q4_K"
    assert matrix_type(MMPROJ_TYPES["q4_k"], Role.TOWER, Layer(3, 32), 160) == "q5_0"


def test_unknown_type_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"text_type = 'q4_k'.*q8_0.*q4_k_m"):
        file_type("q4_k", TEXT_TYPES, "text_type")
    assert file_type("Q4_K_M", TEXT_TYPES, "text_type") is Q4_K_M
